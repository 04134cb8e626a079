-- Whether a client wants the running container to stand still. The end of a run ends that wish.
alter table containers add column wanted_paused boolean not null default false;
