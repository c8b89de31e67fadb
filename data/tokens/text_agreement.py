"""Whether a model and a collection are of one text profile, with the same prefixes; and what a start may differ in.

Evaluation and generation need a model and a collection of the same. Training may start from a model of other texts, as
ANCE's own recipe does (its warmup has seen cased ones), where --change_text_profile says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data.tokens.collection import Preprocessed, as_recorded
from utils.declared.text_profiles import DEFAULT_PROFILE, EARLIER, TEXT_PROFILES
from utils.declared.text_settings import INITIAL_PROFILE, TEXT_KEYS, TextSettings
from utils.errors import UserError
from utils.model_texts import ModelTexts, is_trained, read_model_texts

# Of the ANN stage, where weights of ANCE's layout are its start: from there on its recipe lower-cases.
ANN_PROFILE, ANCE_TYPE = "ance", "rdot_nll"

Use = Literal["encode", "train", "ann"]
TextRecord = Mapping[str, str | None]  # of a checkpoint, by the keys of its config.json


@dataclass(frozen=True)
class TextUse:
    """A model, and what a program does with it.

    Args:
        model: its directory or hub name; "" for random weights.
        texts: what its files say.
        use: ``encode``: it encodes the collection; ``train``: training begins with it; ``ann``: the ANN stage does.
        is_trained: it has seen texts, and is no mere body to start from.
        flag_profile: --text_profile, or "".
        may_change: --change_text_profile.
        model_type: a word of --model_type; of ANCE's layout alone does the ANN stage know what its start has seen.
        keys: those of `TEXT_KEYS` that it depends on: a tower sees texts of one side alone.
    """

    model: str
    texts: ModelTexts
    use: Use
    is_trained: bool
    flag_profile: str = ""
    may_change: bool = False
    model_type: str = ""
    keys: tuple[str, ...] = TEXT_KEYS

    @property
    def known(self) -> ModelTexts:
        """With what the flag says of a model that records no profile. UserError where the two contradict each other."""
        if not (self.flag_profile and self.model) or self.texts.text_profile == self.flag_profile:
            return self.texts
        if self.texts.text_profile is None:
            return replace(
                self.texts, text_profile=self.flag_profile, profile_source=f"--text_profile {self.flag_profile}"
            )
        raise UserError(
            f"--text_profile is {self.flag_profile}, the texts of {self.model} are {self.texts.text_profile} "
            f"({self.texts.profile_source}): omit the flag"
        )


def check_texts(collection: Preprocessed, using: TextUse) -> str:
    """The line that says how the texts became tokens, and how that is known.

    UserError where the model is of other texts than the collection, or nobody says of which.
    """
    known, held = using.known, collection.text_settings
    if not using.model and using.flag_profile not in ("", held.text_profile):  # random weights, or embeddings
        raise UserError(
            f"--text_profile is {using.flag_profile}, {collection.directory} is {held.text_profile}, and there is no "
            "model that has seen other texts: omit the flag"
        )
    origin = (
        f"as {known.profile_source} has it" if known.text_profile else "as preprocessed: the model is of no profile yet"
    )
    if known.text_profile is None and using.is_trained:
        known = ann_start(collection, using)
        origin = known.profile_source
    differing = differences(known, collection, using.keys)
    if differing and not using.may_change:
        raise UserError(
            f"{using.model} has seen other texts than {collection.directory} holds: {differing}; {remedy(known, using)}"
        )
    if differing:
        origin = f"--change_text_profile: {differing}"
    return f"texts: profile {held.text_profile} ({origin}){held.prefixes()}"


def remedy(known: ModelTexts, using: TextUse) -> str:
    """What to do where a model and a collection are of other texts."""
    flags = " ".join(f"--{key} {shlex.quote(getattr(known, key))}" for key in using.keys if getattr(known, key))
    its_own = f"preprocess with {flags}" if known.text_profile != EARLIER else "give the collection it was trained on"
    return its_own + ("" if using.use == "encode" else ", or train it on these by --change_text_profile")


def ann_start(collection: Preprocessed, using: TextUse) -> ModelTexts:
    """What a trained model that records no profile stands for: the ANN stage's, which it is the start of.

    UserError where it is not, or the collection is of another profile.
    """
    if using.use != "ann" or using.model_type != ANCE_TYPE:
        raise UserError(
            f"{using.model} records no text_profile, and its tensors cannot tell it: say how its texts became tokens "
            f"by --text_profile ({', '.join(TEXT_PROFILES)})"
        )
    held = collection.text_settings.text_profile
    if held != ANN_PROFILE:
        raise UserError(
            f"{using.model} records no text_profile, and ANCE's weights start the ANN stage as {ANN_PROFILE}; "
            f"{collection.directory} is {held}: preprocess with --text_profile {ANN_PROFILE}, or say by --text_profile "
            "how the model's texts became tokens"
        )
    profile_source = f"the default of the ANN stage: {using.model} records none"
    return replace(using.texts, text_profile=ANN_PROFILE, profile_source=profile_source)


def differences(known: ModelTexts, collection: Preprocessed, keys: Sequence[str]) -> str:
    """What of ``keys`` a model does not have in common with the collection, in words; "" for nothing that is known."""
    ours = collection.text_settings.record()
    theirs = {key: getattr(known, key) for key in TEXT_KEYS}
    theirs[TEXT_KEYS[0]] = as_recorded(known.text_profile, collection.manifest)
    differing = [key for key in keys if theirs[key] is not None and theirs[key] != ours[key]]
    return ", ".join(f"{key} {theirs[key]!r} there, {ours[key]!r} here" for key in differing)


def keys_of(side: Literal["query", "passage"]) -> tuple[str, ...]:
    """Those of `TEXT_KEYS` that an encoder of one side alone depends on."""
    return tuple(key for key in TEXT_KEYS if key in ("text_profile", f"{side}_prefix"))


def text_record(collection: Preprocessed, start: TextUse, query_start: TextUse | None = None) -> TextRecord:
    """What a checkpoint that is trained on ``collection`` records: of which profile its texts are, and the start's.

    Args:
        collection: what is trained on.
        start: what training begins with.
        query_start: what the queries' tower does, where that is another model; of two profiles none is recorded.
    """
    profiles = {using.known.text_profile for using in (start, query_start) if using is not None}
    return {**collection.text_settings.record(), INITIAL_PROFILE: profiles.pop() if len(profiles) == 1 else None}


# Preprocessing


def text_settings_for(model: str, model_type: str, given: Mapping[str, str | None]) -> tuple[TextSettings, str]:
    """How a collection's texts are to become tokens: as given, else as the model has it; and why that profile.

    Args:
        model: a directory or hub name, "" for none.
        model_type: a word of --model_type.
        given: by `TEXT_KEYS`; "" for a profile and None for a prefix that is not given.
    """
    theirs = read_model_texts(model)
    profile, reason = given["text_profile"] or "", f"--text_profile {given['text_profile']}"
    if not profile:
        profile, reason = profile_for(model, model_type, theirs)
    prefixes = {}
    for key in TEXT_KEYS[1:]:
        prefix = given[key] if given[key] is not None else getattr(theirs, key)
        prefixes[key] = prefix or ""
    return TextSettings(profile, **prefixes), reason


def profile_for(model: str, model_type: str, theirs: ModelTexts) -> tuple[str, str]:
    """The model's; of weights of ANCE's layout without a record that of the stage that they start; and why."""
    if theirs.text_profile is not None and theirs.text_profile in TEXT_PROFILES:
        return theirs.text_profile, f"as {theirs.profile_source} has it"
    if theirs.text_profile is None and model_type == ANCE_TYPE and is_trained(model, model_type):
        return ANN_PROFILE, f"weights of ANCE's layout start the ANN stage, and {model} records no other"
    return DEFAULT_PROFILE, "the default"
