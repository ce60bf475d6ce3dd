# Flags and commands of the scripts beside this file; each sources it and says in FLAGS which flags it takes.

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# The comment at the top of the script is its help.
show_help() {
  awk 'NR == 1 { next } /^#/ { sub(/^# ?/, ""); print; next } { exit }' "$0"
  exit 0
}

# read_flags "$@": --zone=Z sets ZONE, --dry-run sets DRY_RUN, all after -- goes into the array COMMAND. A flag that is
# not given keeps what the environment variable T5FLAN_ZONE says, if there is one.
read_flags() {
  COMMAND=()
  DRY_RUN=
  local flag variable fallback
  for flag in $FLAGS; do
    variable=$(variable_of "$flag")
    fallback="T5FLAN_$variable"
    printf -v "$variable" '%s' "${!fallback:-}"
  done
  while [ $# -gt 0 ]; do
    case "$1" in
      --help | -h) show_help ;;
      --dry-run) DRY_RUN=1 ;;
      --) shift; COMMAND=("$@"); return ;;
      --*=*) flag="${1%%=*}"; set_flag "${flag#--}" "${1#*=}" ;;
      --*)
        [ $# -gt 1 ] || fail "$1 has no value: write $1=VALUE"
        set_flag "${1#--}" "$2"
        shift
        ;;
      *) fail "unexpected word '$1': flags are --name=VALUE, the t5flan command comes after --" ;;
    esac
    shift
  done
}

set_flag() {
  case " $FLAGS " in
    *" $1 "*) printf -v "$(variable_of "$1")" '%s' "$2" ;;
    *) fail "no flag --$1: there are$(printf ' --%s' $FLAGS) --dry-run" ;;
  esac
}

variable_of() {
  echo "$1" | tr 'a-z-' 'A-Z_'
}

# need zone accelerator …: each must be given.
need() {
  local flag variable
  for flag in "$@"; do
    variable=$(variable_of "$flag")
    [ -n "${!variable}" ] || fail "--$flag is not given: write --$flag=VALUE or set T5FLAN_$variable"
  done
}

# Runs a command, or only prints it, quoted so that a shell takes it as it is.
run() {
  if [ -n "$DRY_RUN" ]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

# run_on_workers WHICH COMMAND: over ssh on one worker or all of them.
run_on_workers() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"} "--worker=$1" "--command=$2"
}

queued_resources() {
  local action=$1
  shift
  run gcloud alpha compute tpus queued-resources "$action" "$NAME" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"} "$@"
}
