#!/bin/sh
# The page, with the name of the container that serves it.
printf 'Content-Type: text/html; charset=utf-8\r\n\r\n'
sed "s/@CONTAINER@/$(hostname)/g" /srv/page/page
