-- What a build's Dockerfile was warned of (core/build-request.ts).
alter table builds add column warnings jsonb not null default '[]';
