-- A record of an unneeded blob gets its time once everybody sees it (recordUnneeded).
grant update (since) on unneeded_blobs to berth_api;
