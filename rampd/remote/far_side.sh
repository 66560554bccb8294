#!/bin/sh
# One submission's run on a far machine: started detached, watched over, polled and stopped through short commands.
#
# Copied there by rampd.remote.detached_run, beside a `settings` file, and called as `sh FOLDER/far_side WORD…`. It
# needs a POSIX sh, coreutils, grep and tar; what more it uses (setsid, stdbuf, curl, python3, time) it looks for first.
# Nothing of it is trusted by rampd: submissions run as the same user.
#
# Files in FOLDER, all of them made there:
#   pid       PID START_TIME BOOT_ID of the wrapper; linked into place, so that there is one wrapper, ever
#   job_pid   the job's process group
#   started   ramp-test has been started;  problem: why it was not, in one word
#   log       its output, the first max_log_bytes;  log_end: how many bytes more there were
#   ended     STATUS WORD MAX_RSS_KB MORE_LOG_BYTES, renamed into place: nothing runs any more
#   ending    it is being ended;  timed_out, stopped: why;  spot: AWS takes the instance back
#   reserve   room for `ended` on a disk that has become full
set -u

dir=${0%/*}
mark=RAMPD_REMOTE_RUN
GRACE_TENTHS=50
PROBE_BYTES=8388608
id='' name='' kit='' timeout_s=0 max_log_bytes=0 memory_profiling=0 imds_url='' look_every_s=5
# shellcheck disable=SC1091 # made by rampd
. "$dir/settings"
# shellcheck disable=SC2088 # the tilde itself is meant
case $kit in "~/"*) kit=$HOME/${kit#??} ;; esac

pause() {
    sleep 0.1 2>/dev/null || sleep 1
}

seconds_up() { # -> $now, on a clock that nobody sets, where there is one
    if { read -r now _ </proc/uptime; } 2>/dev/null; then
        now=${now%%.*}
    else
        now=$(date +%s)
    fi
}

boot_id() { # -> $boot
    { read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null || boot=none
}

start_time() { # PID -> $start; a pid alone names no process: it is used again
    start=none
    [ -d /proc/self ] || return 0
    { read -r start </proc/"$1"/stat; } 2>/dev/null || return 1
    start=${start##*) }
    # shellcheck disable=SC2086 # fields
    set -- $start
    case $1 in Z | X) return 1 ;; esac
    shift 19
    start=$1
}

wrapper_lives() {
    { read -r pid pid_start pid_boot <"$dir/pid"; } 2>/dev/null || return 1
    case $pid in '' | *[!0-9]*) return 1 ;; esac
    boot_id
    [ "$boot" = "$pid_boot" ] || return 1
    kill -s 0 "$pid" 2>/dev/null || return 1
    start_time "$pid" && [ "$start" = "$pid_start" ]
}

detach() { # COMMAND… in a session of its own
    if command -v setsid >/dev/null 2>&1; then
        exec setsid "$@"
    fi
    exec "$@"
}

# --- what the daemon is told

say() { # [KEY=VALUE…]: the one line that it looks for
    state=absent status=- word=- rss=- more=-
    if ! [ -e "$dir/ended" ] && [ -e "$dir/pid" ]; then
        if ! wrapper_lives; then
            state=lost
        elif [ -e "$dir/started" ]; then
            state=running
        else
            state=starting
        fi
    fi
    # Looked at last: it may have ended in between, and then nothing lives.
    if { read -r status word rss more <"$dir/ended"; } 2>/dev/null; then
        state=exited
    fi
    size=0
    [ -r "$dir/log" ] && size=$(wc -c <"$dir/log")
    spot=0
    [ -e "$dir/spot" ] && spot=1
    printf 'rampd-run 1 %s state=%s status=%s word=%s rss=%s log=%s more=%s spot=%s problem=%s\n' \
        "$id" "$state" "$status" "$word" "$rss" "$((size))" "$more" "$spot" "${1:--}"
}

refuse() { # PROBLEM
    say "$1"
    exit 1
}

full() { # FOLDER -> whether nothing more goes in there
    [ -w "$1" ] || return 1
    if head -c "$PROBE_BYTES" /dev/zero 2>/dev/null >"$1/.rampd-probe-$id"; then
        rm -f "$1/.rampd-probe-$id"
        return 1
    fi
    rm -f "$1/.rampd-probe-$id"
}

any_full() {
    full "$dir" || full "$kit/submissions" || full "${TMPDIR:-/tmp}"
}

# --- ending a run

marked() { # -> the pids that carry the run's mark, whatever became of their parents
    # shellcheck disable=SC2013 # words: paths of digits
    for environ in $(grep -lF "$mark=$id" /proc/[0-9]*/environ 2>/dev/null); do
        environ=${environ#/proc/}
        printf '%s ' "${environ%/environ}"
    done
}

any_left() {
    if [ -d /proc/self ]; then
        grep -qF "$mark=$id" /proc/[0-9]*/environ 2>/dev/null
    else
        kill -s 0 -- "-$job" 2>/dev/null
    fi
}

signal_all() { # SIGNAL
    [ -z "$job" ] || kill -s "$1" -- "-$job" 2>/dev/null
    for one in $(marked); do
        kill -s "$1" "$one" 2>/dev/null
    done
}

kill_all() {
    tries=0
    signal_all KILL
    while any_left && [ "$tries" -lt "$GRACE_TENTHS" ]; do
        pause
        signal_all KILL
        tries=$((tries + 1))
    done
}

end_job() { # TERM, a while, KILL
    : >"$dir/ending"
    signal_all TERM
    tries=0
    while any_left && [ "$tries" -lt "$GRACE_TENTHS" ]; do
        pause
        tries=$((tries + 1))
    done
    kill_all
}

# --- the wrapper: one a run, in a session of its own, with nothing of the connection's

wrapper() {
    trap '' HUP
    cd "$dir" || exit 1
    job=
    boot_id
    start_time $$
    printf '%s %s %s\n' $$ "$start" "$boot" >"pid.$$" || exit 1
    if ! ln "pid.$$" pid 2>/dev/null; then
        rm -f "pid.$$"
        exit 0
    fi
    rm -f "pid.$$"
    head -c 1048576 /dev/zero >reserve 2>/dev/null || finish 125 disk-full
    : >log
    mkfifo output || finish 125 disk-full
    keep_log <output &
    keeping=$!
    (
        export "$mark=$id"
        detach sh "$0" job
    ) >output 2>&1 </dev/null &
    job=$!
    echo "$job" >job_pid
    watch &
    watching=$!
    wait "$job"
    status=$?
    if [ -e ending ]; then
        tries=0
        while any_left && [ "$tries" -lt $((GRACE_TENTHS + 10)) ]; do
            pause
            tries=$((tries + 1))
        done
    fi
    kill -s TERM "$watching" 2>/dev/null
    # From here on nothing changes what is there to collect; and the log's writers are gone, so that it ends.
    kill_all
    tries=0
    until [ -e log_end ] || [ "$tries" -ge "$GRACE_TENTHS" ]; do
        pause
        tries=$((tries + 1))
    done
    kill -s KILL "$keeping" 2>/dev/null
    wait
    word=ok
    if [ -e timed_out ] && [ -e started ]; then # else it is the profile that had no end
        word=timeout status=124
    elif [ -e stopped ]; then
        word=stopped
    elif [ "$status" -ne 0 ] && any_full; then
        word=disk-full
    elif ! [ -e started ]; then
        word=profile
        { read -r word <problem; } 2>/dev/null
    fi
    finish "$status" "$word"
}

finish() { # STATUS WORD
    rss=- more=0
    # shellcheck disable=SC2094 # a variable and a file of one name
    { read -r rss <rss; } 2>/dev/null
    { read -r more <log_end; } 2>/dev/null
    rm -f reserve output
    printf '%s %s %s %s\n' "$1" "$2" "${rss:--}" "${more:-0}" >ended.new && mv ended.new ended
    exit 0
}

keep_log() { # reads to the end whatever becomes of the file: what prints is never stopped by that
    if command -v stdbuf >/dev/null 2>&1; then
        stdbuf -o0 head -c "$max_log_bytes" >log 2>/dev/null
    else
        head -c "$max_log_bytes" >log 2>/dev/null
    fi
    more=$(wc -c)
    if [ "$more" -gt 0 ]; then
        printf '\n[rampd] the log ends here: only the first %s bytes are kept\n' "$max_log_bytes" >>log
    fi
    echo "$((more))" >log_end
}

watch() { # the deadline and AWS's notice, until it is ended
    # By $!, which is set before a trap is heard; until there is a nap it is still the job's.
    trap '[ "$!" = "$job" ] || kill "$!" 2>/dev/null; exit 0' TERM
    seconds_up
    deadline=$((now + timeout_s))
    token=
    while [ "$now" -lt "$deadline" ]; do
        [ -z "$imds_url" ] || [ -e spot ] || look_for_notice
        nap=$((deadline - now))
        [ "$nap" -le "$look_every_s" ] || nap=$look_every_s
        sleep "$nap" &
        wait "$!"
        seconds_up
        # Should somebody have killed the wrapper, the deadline holds all the same, while anything of the run lives.
        wrapper_lives || any_left || exit 0
    done
    : >timed_out
    end_job
}

look_for_notice() { # IMDSv2; 404 is no notice, 401 a token that has run out, anything else is looked at again
    [ -n "$token" ] || token=$(imds PUT /latest/api/token) || token=
    if [ -n "$token" ]; then
        if notice=$(imds GET /latest/meta-data/spot/instance-action); then
            printf '%.512s\n' "$notice" >spot
        elif [ "$notice" = 401 ]; then
            token=
        fi
    fi
}

imds() { # METHOD PATH -> the body, or the status (and false)
    if command -v curl >/dev/null 2>&1; then
        if [ "$1" = PUT ]; then
            header='X-aws-ec2-metadata-token-ttl-seconds: 21600'
        else
            header="X-aws-ec2-metadata-token: $token"
        fi
        reply=$(curl -s -m 2 --noproxy '*' -X "$1" -H "$header" -w '\n%{http_code}' "$imds_url$2" 2>/dev/null) || :
    else
        reply=$(python3 -I -c '
import sys, urllib.error, urllib.request
method, url, token = sys.argv[1:]
name = "X-aws-ec2-metadata-token-ttl-seconds" if method == "PUT" else "X-aws-ec2-metadata-token"
request = urllib.request.Request(url, method=method, headers={name: "21600" if method == "PUT" else token})
try:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=2) as reply:
        print(reply.read(4096).decode(), reply.status, sep="\n", end="")
except urllib.error.HTTPError as error:
    print("", error.code, sep="\n", end="")
' "$1" "$imds_url$2" "$token" 2>/dev/null) || :
    fi
    code=${reply##*
}
    if [ "$code" = 200 ]; then
        printf '%s' "${reply%
*}"
        return 0
    fi
    printf '%s' "$code"
    return 1
}

# --- the job: what carries the run's mark

job() { # under the login profile, which may say, set and break what it likes
    { echo 500 >/proc/self/oom_score_adj; } 2>/dev/null # rather this than sshd or the wrapper
    umask 022
    cd "$HOME" || exit 125
    set +u
    # shellcheck disable=SC1091 # whatever is there
    {
        if [ -r "$HOME/.profile" ]; then
            . "$HOME/.profile"
        elif [ -r "$HOME/.bash_profile" ]; then
            . "$HOME/.bash_profile"
        fi
    } >>"${0%/*}/profile.log" 2>&1
    exec sh "$0" training
}

in_environment() { # COMMAND… by another shell: no variable that is set for it is one of this script's
    sh -c '. "$0"; exec "$@"' "$dir/environment" "$@"
}

has() { # PROGRAM
    sh -c '. "$0"; command -v "$1"' "$dir/environment" "$1" >/dev/null 2>&1
}

training() {
    cd "$kit" || give_up no-kit
    has ramp-test || give_up no-ramp-test
    set -- ramp-test --submission "$name" --save-output --ignore-warning
    if [ "$memory_profiling" = 1 ]; then
        has mprof || give_up no-mprof
        # mprof's own exit status is its own.
        # shellcheck disable=SC2016 # for that shell
        set -- mprof run --include-children --output "$dir/mprof.dat" \
            sh -c 'trap : TERM; "$@"; echo "$?" >"$0"' "$dir/ramp_status" "$@"
    fi
    # Both say how large the largest process has been; what they run ends before they do, also where all are told to.
    if in_environment python3 -I -c '' 2>/dev/null; then
        set -- python3 -I -c '
import os, signal, sys
# Ignored, not handled: an interpreter that ends puts its handlers back, and all are told to end twice.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
default = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM]
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, setsigdef=default)
_, status, usage = os.wait4(child, 0)
try:
    with open(sys.argv[1], "w") as file:
        file.write(f"{usage.ru_maxrss}\n")
except OSError:
    pass
code = os.waitstatus_to_exitcode(status)
sys.exit(code if code >= 0 else 128 - code)
' "$dir/rss" "$@"
    elif [ "$(/usr/bin/time -q -f %M true 2>&1)" -gt 0 ] 2>/dev/null; then
        set -- /usr/bin/time -q -f %M -o "$dir/rss" "$@"
    fi
    : >"$dir/started" || give_up disk-full
    # Waits for what it has started, where the whole group is told to end.
    trap : TERM
    in_environment "$@"
    status=$?
    { read -r status <"$dir/ramp_status"; } 2>/dev/null
    exit "$status"
}

give_up() { # PROBLEM
    echo "$1" >"$dir/problem"
    exit 125
}

# --- what the daemon asks for

launch() { # answers once ramp-test runs, or will not
    if ! [ -e "$dir/pid" ]; then
        (detach sh "$0" wrapper) </dev/null >/dev/null 2>&1 &
    fi
    tries=0
    until [ -e "$dir/started" ] || [ -e "$dir/ended" ] || [ "$tries" -ge 600 ]; do
        pause
        tries=$((tries + 1))
        # It has ten seconds to appear, and then may not be gone without a word.
        if ! wrapper_lives && { [ -e "$dir/pid" ] || [ "$tries" -ge 100 ]; }; then
            break
        fi
    done
    [ -e "$dir/pid" ] || ! any_full || refuse disk-full
    say
}

poll() { # OFFSET MAX_BYTES
    say
    [ "$2" -gt 0 ] || return 0
    [ "$size" -gt "$1" ] || return 0
    tail -c "+$(($1 + 1))" "$dir/log" | head -c "$2"
}

stop() { # for good: a run that was not launched cannot be any more
    : >"$dir/stopped"
    echo stopped >"$dir/pid.$$"
    ln "$dir/pid.$$" "$dir/pid" 2>/dev/null
    rm -f "$dir/pid.$$"
    if ! [ -e "$dir/ended" ]; then
        job=
        { read -r job <"$dir/job_pid"; } 2>/dev/null
        end_job
        tries=0
        while ! [ -e "$dir/ended" ] && wrapper_lives && [ "$tries" -lt $((2 * GRACE_TENTHS)) ]; do
            pause
            tries=$((tries + 1))
        done
    fi
    say
}

upload() { # an archive with the one folder NAME on stdin
    if [ -e "$dir/pid" ]; then
        cat >/dev/null
        say
        return
    fi
    umask 022
    cd "$kit" 2>/dev/null || refuse no-kit
    mkdir -p submissions 2>/dev/null
    [ -w submissions ] || refuse kit-not-writable
    new=submissions/.rampd-$id
    rm -rf "$new"
    if mkdir "$new" && tar -xof - -C "$new" && [ -d "$new/$name" ] &&
        rm -rf "submissions/$name" && mv "$new/$name" "submissions/$name"; then
        rm -rf "$new"
        say
        return
    fi
    problem=bad-archive
    # Before anything is removed: what was written is what fills it.
    if full submissions; then
        problem=disk-full
    fi
    rm -rf "$new"
    refuse "$problem"
}

collect() { # an archive of what is there to collect, on stdout
    set --
    if [ -e "$kit/submissions/$name/training_output" ]; then
        set -- -C "$kit/submissions/$name" training_output
    fi
    if [ -e "$dir/mprof.dat" ]; then
        set -- "$@" -C "$dir" mprof.dat
    fi
    if [ $# -eq 0 ]; then
        exec head -c 1024 /dev/zero # an archive of nothing
    fi
    exec tar -cf - "$@"
}

cleanup() {
    stop >/dev/null
    rm -rf "$kit/submissions/.rampd-$id" "$kit/submissions/$name"
    rm -rf "$dir"
    say
}

"$@"
