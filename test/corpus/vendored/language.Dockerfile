# syntax=docker/dockerfile:1
# escape=\
# check=skip=JSONArgsRecommended,MaintainerDeprecated,NoEmptyContinuation,ConsistentInstructionCasing

# A comment, an empty line, keywords in any case, white space before them.
  FROM   debian:12   AS   base
MAINTAINER Ada <ada@example.com>
RUN echo one \
# a comment between continued lines
    && echo two \

    && echo three \  
    && echo "a \\ in the middle"
RUN echo '# not a comment' # but this is for the shell
RUN ["/bin/sh", "-c", "echo \"json\" \u00e9"]
RUN [ -d /etc ] && echo "begins like JSON and is none"
CMD echo shell form
ENTRYPOINT ["/bin/sh", "-c"]
LABEL empty="" one=1 "quoted key"="quoted value" esc=a\ b multi="first \
second"
ENV legacy value with  spaces
ENV A=1 B="two words" C='single $A' D=back\ slash E=
user  root
