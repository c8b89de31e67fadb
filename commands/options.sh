# shellcheck shell=bash
# Sourced by env.sh, and by a script whose options become settings before that: error messages, a script's own options.

die() { # MESSAGE: one line on stderr, exit code 2 (bad flags or input)
  say_error "error: $*"
  exit 2
}

say_error() { # MESSAGE
  printf '%s: %s\n' "${0##*/}" "$*" >&2
}

has_word() { # WORD WORDS...: whether WORD is one of WORDS
  local word=$1 other
  shift
  for other in "$@"; do
    [[ $other != "$word" ]] || return 0
  done
  return 1
}

# Reads --NAME VALUE, --NAME=VALUE and --SWITCH; "_" and "-" in a name are the same. Sets OPTIONS (NAME to VALUE, SWITCH
# to 1) and OTHERS, the arguments that are none of these. Where "--" is a switch, what follows it is in AFTER_DASHES.
# shellcheck disable=SC2034 # they are for the caller
parse_options() { # "NAMES" "SWITCHES" ARGUMENTS...: -h and --help print the script's usage, and end it
  local name
  local -a names switches
  read -ra names <<<"$1"
  read -ra switches <<<"$2"
  shift 2
  declare -gA OPTIONS=()
  OTHERS=() AFTER_DASHES=()
  while (($# > 0)); do
    name=${1%%=*} name=${name#--} name=${name//-/_}
    if [[ $1 == -h || $1 == --help ]]; then
      usage
      exit 0
    elif [[ $1 == -- ]] && has_word -- "${switches[@]+"${switches[@]}"}"; then
      AFTER_DASHES=("${@:2}")
      return
    elif [[ $1 == --* ]] && has_word "$name" "${names[@]+"${names[@]}"}"; then
      [[ $1 != *=* ]] || set -- "--$name" "${1#*=}" "${@:2}"
      [[ -n ${2:-} ]] || die "--$name needs a value; --help says which"
      OPTIONS[$name]=$2
      shift
    elif [[ $1 == --* && $1 != *=* ]] && has_word "$name" "${switches[@]+"${switches[@]}"}"; then
      OPTIONS[$name]=1
    else
      OTHERS+=("$1")
    fi
    shift
  done
}

refuse_others() { # dies where parse_options has met an argument that it does not know
  ((${#OTHERS[@]} == 0)) || die "unknown argument ${OTHERS[0]}; --help lists them"
}
