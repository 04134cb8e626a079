import type { DeployTemplate } from "../core/deploy.ts";
import { BerthError } from "../core/errors.ts";
import type { SourceBuild, SourceProvider, SourceSeals } from "../core/source.ts";
import { endWaiting } from "./deployment-ends.ts";
import { stopEarlier } from "./deployment-runs.ts";
import { behind, type Page, type Paged, paged } from "./page.ts";
import { type Fragment, read, type Scope, type Sql, type Tx, time } from "./scope.ts";

export interface SourceRow {
  id: string;
  name: string;
  provider: SourceProvider;
  /** null exactly for the provider `berth`. */
  url: string | null;
  branches: string[];
  subdirectory: string | null;
  build: SourceBuild;
  deploy: DeployTemplate | null;
  /** Credentials for the repository, sealed for `auth:<id>`. */
  authSealed: string | null;
  /** What it keeps for its builds. */
  seals: SourceSeals;
  /** What was built last of each ref. */
  heads: { ref: string; commit: string; buildId: string | null }[];
  /** Of the deployment that its ports lead to. */
  deploymentId: string | null;
  createdAt: string;
}

/** The columns of a source that `SourceSeals` are. */
export const seals = (sql: Sql): Fragment =>
  sql`json_build_object('registryAuth', registry_auth_sealed, 'secrets', secrets_sealed)`;

function view(sql: Sql, where: Fragment): Fragment {
  return sql`
    select id, name, provider, url, branches, subdirectory, build, deploy, auth_sealed as "authSealed",
      ${seals(sql)} as seals,
      coalesce((select json_agg(json_build_object('ref', h.ref, 'commit', h.commit, 'buildId', h.build_id) order by h.ref)
        from source_heads h where h.source_id = sources.id and h.commit is not null), '[]') as heads,
      (select d.id from deployments d where d.source_id = sources.id and d.status = 'succeeded'
        order by d.created_at desc limit 1) as "deploymentId",
      created_at as "createdAt" from sources where ${where}`;
}

const sourceRow = (raw: SourceRow): SourceRow => ({ ...raw, createdAt: time(raw.createdAt) });

/** A source of the project by id or name; null when it has none. */
export async function findSource(sql: Sql, scope: Scope, idOrName: string): Promise<SourceRow | null> {
  const { projectId } = scope;
  const named = sql`project_id = ${projectId} and (id = ${idOrName} or name = ${idOrName})`;
  return (await read<SourceRow>(sql, scope, view(sql, named))).map(sourceRow)[0] ?? null;
}

/** A page of the project's sources, newest first. */
export async function listSources(sql: Sql, scope: Scope, page: Page): Promise<Paged<SourceRow>[]> {
  const after = behind(sql, page, sql`created_at`, sql`id`);
  const rows = await read<SourceRow>(
    sql,
    scope,
    sql`${view(sql, sql`project_id = ${scope.projectId} ${after}`)}
      order by sources.created_at desc, sources.id limit ${page.limit}`,
  );
  return paged(rows, sourceRow);
}

/** The ids of the project's sources. */
export async function sourceIds(sql: Sql, scope: Scope): Promise<Set<string>> {
  const rows = await read<{ id: string }>(
    sql,
    scope,
    sql`select id from sources where project_id = ${scope.projectId}`,
  );
  return new Set(rows.map(({ id }) => id));
}

/** How many sources the project has. */
export async function countSources(tx: Tx, projectId: string): Promise<number> {
  const [row] = await tx<{ n: number }[]>`select count(*)::int as n from sources where project_id = ${projectId}`;
  return row?.n ?? 0;
}

/** What a source is made of. */
export type SourceFields = Omit<SourceRow, "id" | "heads" | "deploymentId" | "createdAt" | "provider">;

/** Adds a source. A name that is taken fails on the constraint `sources_project_id_name_key`. */
export async function insertSource(
  tx: Tx,
  source: SourceFields & { id: string; projectId: string; provider: SourceProvider; secretSealed: string },
): Promise<void> {
  await tx`
    insert into sources (id, project_id, name, provider, url, branches, subdirectory, build, deploy, secret_sealed, auth_sealed,
      registry_auth_sealed, secrets_sealed)
    values (${source.id}, ${source.projectId}, ${source.name}, ${source.provider}, ${source.url}, ${source.branches},
      ${source.subdirectory}, ${JSON.stringify(source.build)}::text::jsonb, ${json(source.deploy)}::text::jsonb,
      ${source.secretSealed}, ${source.authSealed}, ${source.seals.registryAuth}, ${source.seals.secrets})`;
}

/** The source, which nothing else changes or removes until the transaction ends; null when the project has none. */
export async function lockSource(tx: Tx, scope: Scope, id: string): Promise<SourceRow | null> {
  await tx`select 1 from sources where project_id = ${scope.projectId} and id = ${id} for update`;
  return findSource(tx, scope, id);
}

/** Changes a source that is locked to what is given. Of another repository nothing was built yet. */
export async function updateSource(tx: Tx, before: SourceRow, source: SourceFields): Promise<void> {
  const { id } = before;
  await tx`
    update sources set name = ${source.name}, url = ${source.url}, branches = ${source.branches},
      subdirectory = ${source.subdirectory}, build = ${JSON.stringify(source.build)}::text::jsonb,
      deploy = ${json(source.deploy)}::text::jsonb, auth_sealed = ${source.authSealed},
      registry_auth_sealed = ${source.seals.registryAuth}, secrets_sealed = ${source.seals.secrets}
    where id = ${id}`;
  if (before.url !== source.url) await tx`delete from source_heads where source_id = ${id}`;
}

const json = (value: object | null) => (value === null ? null : JSON.stringify(value));

/** Puts another secret in place of the one that a source's webhooks are signed with. */
export async function replaceSecret(tx: Tx, projectId: string, id: string, secretSealed: string): Promise<void> {
  await tx`update sources set secret_sealed = ${secretSealed} where project_id = ${projectId} and id = ${id}`;
}

/**
 * Removes a source that is locked, with what was told of it; what waits to be read of it is cancelled, and its deployment
 * ends: of containers that it started or that it was about to stop, none is left running. Its builds stay.
 */
export async function deleteSource(tx: Tx, projectId: string, id: string): Promise<void> {
  await endWaiting(tx, id, new BerthError("not_found", "The source was removed."));
  const switching = await tx<{ id: string }[]>`
    select id from deployments where source_id = ${id} and status = 'switching' for update`;
  for (const run of switching) await stopEarlier(tx, run);
  await tx`
    update jobs set status = 'cancelled', finished_at = now(), payload = payload - array['auth', 'secrets', 'registryAuth']
    where project_id = ${projectId} and subject_id = ${id} and kind = 'source' and status = 'queued'`;
  await tx`delete from sources where project_id = ${projectId} and id = ${id}`;
}

/** What a webhook is checked with; null: there is no such source. Precedes knowing the project. */
export async function findWebhookSource(
  sql: Sql,
  id: string,
): Promise<{ projectId: string; provider: SourceProvider; branches: string[]; secretSealed: string } | null> {
  const [row] = await sql<
    { projectId: string; provider: SourceProvider; branches: string[]; secretSealed: string }[]
  >`select project_id as "projectId", provider, branches, secret_sealed as "secretSealed" from berth_webhook_source(${id})`;
  return row ?? null;
}
