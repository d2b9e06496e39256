#!/bin/sh
# Does what the host asks for over the serial line, one request at a time:
#   host:  RUN <token> <shell command>
#   guest: BEGIN <token>, what the command prints, DONE <token> <exit status>
# The token tells the answer from whatever else is in the line, for instance
# the end of an answer from before the guest was put back.
stty sane -echo -onlcr
dmesg -n 1
echo READY
while IFS= read -r line; do
    case $line in
    "RUN "*" "*)
        rest=${line#RUN }
        token=${rest%% *}
        echo "BEGIN $token"
        sh -c "${rest#* }" </dev/null
        echo "DONE $token $?"
        ;;
    esac
done
