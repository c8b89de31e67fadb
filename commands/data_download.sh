#!/usr/bin/env bash
# Downloads MS MARCO into RAW_DATA_DIR, checks it, and unpacks the tar archives; .gz files stay, the programs read them.
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=env.sh
source "$REPO/commands/env.sh"

usage() {
  cat <<'TEXT'
usage: bash commands/data_download.sh [--dry_run] [passage] [document] [triples] [top1000] [trec2019] [trec2020]
                                      [leaderboard]

  passage   collection, queries and qrels of passage ranking (1 GB, 3.1 GB unpacked)
  document  documents, queries and qrels of document ranking (8.5 GB)
  triples   triples.train.small.tsv, ANCE's warmup data (8 GB, 29 GB unpacked)
  top1000   top1000.dev, the candidates that are reranked (0.7 GB, 2.6 GB unpacked)
  trec2019  queries and NIST's qrels of TREC Deep Learning 2019, passages and documents (0.5 MB)
  trec2020  those of 2020 (0.4 MB)
  leaderboard  the documents' leaderboard queries, which have no qrels (0.1 MB); those of passages come with passage

Default: passage document. Goes to RAW_DATA_DIR (default results/runs/msmarco/raw). What is there is not fetched again, an
interrupted download is resumed. --dry_run only says what would be fetched.
MSMARCO_URL is the directory to fetch from, TREC_URL that of NIST's qrels, MSMARCO_FILES the list of files with sizes
and md5.
MS MARCO is for non-commercial research: https://microsoft.github.io/msmarco/
TEXT
}

setting MSMARCO_URL https://msmarco.z22.web.core.windows.net/msmarcoranking
setting TREC_URL https://trec.nist.gov/data/deep
path_setting MSMARCO_FILES commands/msmarco_files.tsv
GROUPS_KNOWN=(passage document triples top1000 trec2019 trec2020 leaderboard)

parse_options '' dry_run "$@"
dry_run=${OPTIONS[dry_run]:-0} groups=("${OTHERS[@]+"${OTHERS[@]}"}")
((${#groups[@]} > 0)) || groups=(passage document)
for group in "${groups[@]}"; do
  has_word "$group" "${GROUPS_KNOWN[@]}" || die "unknown argument $group, expected some of ${GROUPS_KNOWN[*]}"
done

DOWNLOADED=$RAW_DATA_DIR/.downloaded # NAME: "bytes<tab>file" of what came of it; written last

is_present() { # NAME: whether every file that came of it is still there, in its size
  local bytes file
  [[ -s $DOWNLOADED/$1 ]] || return 1
  while IFS=$'\t' read -r bytes file; do
    [[ -f $RAW_DATA_DIR/$file && $(stat -L -c %s "$RAW_DATA_DIR/$file") == "$bytes" ]] || return 1
  done <"$DOWNLOADED/$1"
}

size_of() { # FILE: its bytes, 0 where it is not there
  stat -L -c %s "$1" 2>/dev/null || echo 0
}

url_of() { # NAME
  case $1 in
    20[0-9][0-9]qrels-*) echo "$TREC_URL/$1" ;;
    *) echo "$MSMARCO_URL/$1" ;;
  esac
}

remote_size() { # NAME: Content-Length, or nothing
  # Azure serves its largest files only to clients that name a version of its protocol.
  curl --silent --fail --location --head --header 'X-Ms-Version: 2019-12-12' "$(url_of "$1")" |
    tr -d '\r' | awk 'tolower($1) == "content-length:" { bytes = $2 } END { print bytes }'
}

fetch() { # NAME BYTES: leaves RAW_DATA_DIR/NAME.part complete
  local part=$RAW_DATA_DIR/$1.part bytes=$2 code=0
  [[ $bytes != - ]] || bytes=$(remote_size "$1" || true)
  if [[ -n $bytes ]]; then
    (($(size_of "$part") <= bytes)) || rm -f "$part"
    [[ $(size_of "$part") != "$bytes" ]] || return 0
  fi
  local -a download=(curl --fail --location --retry 5 --connect-timeout 30 --header 'X-Ms-Version: 2019-12-12'
    --silent --show-error --output "$part" "$(url_of "$1")")
  [[ ! -t 2 ]] || download+=(--no-silent --progress-bar)
  "${download[@]}" --continue-at - || code=$?
  if ((code == 33)); then # the server cannot resume
    code=0
    rm -f "$part"
    "${download[@]}" || code=$?
  fi
  ((code == 0)) || die "$(url_of "$1"): curl failed with code $code; run this again to resume"
  [[ -f $part ]] || : >"$part"
}

check() { # NAME BYTES MD5: of the .part; removes one that is not what it should be
  local part=$RAW_DATA_DIR/$1.part bytes md5
  bytes=$(size_of "$part")
  if [[ $2 != - && $bytes != "$2" ]]; then
    rm -f "$part"
    die "$1 has $bytes bytes, expected $2: damaged, removed; run this again, or fix $MSMARCO_FILES if it was published again"
  fi
  [[ $3 != - ]] || {
    echo "$1: md5 not known, not checked"
    return
  }
  md5=$(md5sum <"$part" | cut -d' ' -f1)
  if [[ $md5 != "$3" ]]; then
    rm -f "$part"
    die "$1 has md5 $md5, expected $3: damaged, removed; run this again, or fix $MSMARCO_FILES if it was published again"
  fi
}

place() { # FROM NAME: moves a file into RAW_DATA_DIR; an equal one may be there, another is not overwritten
  local target=$RAW_DATA_DIR/$2
  if [[ -e $target || -L $target ]]; then
    cmp --silent "$1" "$target" || die "$target exists and differs from the downloaded one: move it away, then run this again"
    rm -f "$1"
  else
    mv "$1" "$target"
  fi
}

# Refuses any archive that holds more than plain files without a directory; unpacks next to the target, then moves.
unpack() { # NAME RECORD: adds "bytes<tab>file" for each member to RECORD
  local part=$RAW_DATA_DIR/$1.part folder=$RAW_DATA_DIR/.unpack kind bytes name list
  local -a names=()
  list=$(tar --list --verbose --gzip --numeric-owner --quoting-style=escape --absolute-names --file "$part") ||
    die "$1 is not a whole tar archive; remove $part and run this again"
  while read -r kind _ bytes _ _ name; do
    name=${name#./}
    [[ -n $name || $kind != d* ]] || continue # "./" itself
    [[ $kind == -* && $name =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] ||
      die "$1 holds '$name' (${kind:0:1}), expected plain files without a directory: not unpacked; $part is kept for inspection"
    names+=("$name")
    printf '%s\t%s\n' "$bytes" "$name" >>"$2"
  done <<<"$list"
  ((${#names[@]} > 0)) || die "$1 is an empty archive; remove $part and run this again"
  rm -rf "$folder"
  mkdir "$folder"
  tar --extract --gzip --no-same-owner --no-same-permissions --directory "$folder" --file "$part" ||
    die "$1 could not be unpacked into $folder: see tar's message above"
  for name in "${names[@]}"; do
    place "$folder/$name" "$name"
  done
  rmdir "$folder"
  rm -f "$part"
}

download() { # NAME BYTES MD5
  local record=$DOWNLOADED/.new
  echo "fetching $1"
  fetch "$1" "$2"
  check "$1" "$2" "$3"
  : >"$record"
  case $1 in
    *.tar.gz) unpack "$1" "$record" ;;
    *)
      printf '%s\t%s\n' "$(size_of "$RAW_DATA_DIR/$1.part")" "$1" >"$record"
      place "$RAW_DATA_DIR/$1.part" "$1"
      ;;
  esac
  mv "$record" "$DOWNLOADED/$1"
}

[[ -f $MSMARCO_FILES ]] || die "$MSMARCO_FILES: no such file"
todo=()
missing_mb=0
columns=$'^[^\t]+\t[^\t/]+\t([0-9]+|-)\t([0-9a-f]{32}|-)$'
while read -r line; do
  [[ $line =~ $columns ]] || die "$MSMARCO_FILES: '$line', expected group, name, bytes and md5 with a tab between each"
  IFS=$'\t' read -r group name bytes md5 <<<"$line"
  has_word "$group" "${groups[@]}" || continue
  if is_present "$name"; then
    echo "$name: present"
    continue
  fi
  todo+=("$name"$'\t'"$bytes"$'\t'"$md5")
  unpacked=1
  [[ $name != *.tar.gz ]] || unpacked=5 # the archive, and up to four times its size
  [[ $bytes == - ]] || missing_mb=$((missing_mb + bytes * unpacked / 1048576))
  ((dry_run == 0)) || printf '%s: to fetch from %s, %s bytes (%s there), md5 %s\n' "$name" "$(url_of "$name")" \
    "${bytes/#-/unknown}" "$(size_of "$RAW_DATA_DIR/$name.part")" "${md5/#-/unknown}"
done < <(sed -e 's/\r$//' -e '/^#/d' -e '/^$/d' "$MSMARCO_FILES")

((dry_run == 0)) || exit 0
((${#todo[@]} > 0)) || exit 0
command -v curl >/dev/null || die "no curl, with which files are fetched: install it (Debian: apt install curl)"
open_lock "$DOWNLOADED/.lock" "cannot write in $RAW_DATA_DIR: set RAW_DATA_DIR to a directory that this user may write"
lock "$LOCK" "$DOWNLOADED/.lock" --nonblock || die "another download into $RAW_DATA_DIR is running: wait for it"
need_space "$RAW_DATA_DIR" "$missing_mb" "MS MARCO (${groups[*]})"
for entry in "${todo[@]}"; do
  IFS=$'\t' read -r name bytes md5 <<<"$entry"
  download "$name" "$bytes" "$md5"
done
echo "complete: $RAW_DATA_DIR"
