# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file read these variables
# Flags and commands shared by the scripts in this folder. A script sources this file and lists its flags in FLAGS.

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# Prints the comment at the top of the script.
show_help() {
  awk 'NR == 1 { next } /^#/ { sub(/^# ?/, ""); print; next } { exit }' "$0"
  exit 0
}

# read_flags "$@": --zone=Z sets ZONE, --dry_run (or --dry-run) sets DRY_RUN, and everything after -- goes into the array COMMAND. The
# default of a flag is the environment variable T5FLAN_ZONE, if set.
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
      --dry_run | --dry-run) DRY_RUN=1 ;;
      --) shift; COMMAND=("$@"); return ;;
      --*=*) flag="${1%%=*}"; set_flag "${flag#--}" "${1#*=}" ;;
      --*)
        [ $# -gt 1 ] || fail "$1 needs a value: write $1=VALUE"
        set_flag "${1#--}" "$2"
        shift
        ;;
      *) fail "unexpected argument '$1': write flags as --name=VALUE, and the t5flan command after --" ;;
    esac
    shift
  done
}

set_flag() {
  case " $FLAGS " in
    *" $1 "*) printf -v "$(variable_of "$1")" '%s' "$2" ;;
    *) fail "unknown flag --$1: expected one of --${FLAGS// / --} --dry_run" ;;
  esac
}

variable_of() {
  echo "$1" | tr 'a-z-' 'A-Z_'
}

# need zone accelerator …: requires these flags.
need() {
  local flag variable
  for flag in "$@"; do
    variable=$(variable_of "$flag")
    [ -n "${!variable}" ] || fail "--$flag is missing: write --$flag=VALUE or set T5FLAN_$variable"
  done
}

# Runs a command, or only prints it, quoted for a shell.
run() {
  if [ -n "$DRY_RUN" ]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

# run_on_workers WHICH COMMAND: runs it over ssh on one worker or on all.
run_on_workers() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"} "--worker=$1" "--command=$2"
}

queued_resources() {
  local action=$1
  shift
  run gcloud alpha compute tpus queued-resources "$action" "$NAME" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"} "$@"
}

# A command for every worker that prints 'running', or 'ended' with the exit code of the run, or 'none'.
# shellcheck disable=SC2016 # the worker's shell expands it
CHECK_RUN='cd ~/t5flan 2>/dev/null || true
if [ ! -f train.pid ]; then echo "t5flan-run: none"
elif kill -0 "$(cat train.pid)" 2>/dev/null; then echo "t5flan-run: running"
else echo "t5flan-run: ended $(cat train.exit 2>/dev/null || echo unknown)"; fi'

# connect_processes: adds to COMMAND what makes the processes of a job find each other.
connect_processes() {
  case "${COMMAND[0]}" in
    train) COMMAND+=(--gin.RunConfig.multi_host=True) ;;
    infer | evaluate) COMMAND+=(--multi_host) ;;
  esac
}

# need_command: requires a t5flan command that several hosts can share.
need_command() {
  [ ${#COMMAND[@]} -gt 0 ] || fail "no t5flan command: write it after --, as in '-- train --workdir=gs://…'"
}

# need_numbers hosts chips …: requires these flags to be numbers above 0.
need_numbers() {
  local flag variable
  for flag in "$@"; do
    variable=$(variable_of "$flag")
    [[ ${!variable} =~ ^[1-9][0-9]*$ ]] || fail "--$flag=${!variable} must be a number above 0"
  done
}
