-- Secrets for the secret mounts of a source's builds: id -> value as JSON, sealed (core/keys.ts) for the purpose `secrets:<id>`.
alter table sources add column secrets_sealed text;
