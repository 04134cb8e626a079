-- Users at registries for a source's builds: registry -> {username, password} as JSON, sealed (core/keys.ts) for the purpose
-- `registryAuth:<id>`.
alter table sources add column registry_auth_sealed text;
