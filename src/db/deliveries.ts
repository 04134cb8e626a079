import { newId } from "../core/ids.ts";
import { jobSealPurpose } from "../core/job.ts";
import { open, seal } from "../core/keys.ts";
import { type DeliveryStatus, type SourcePayload, type SourceSeals, sealedForBuild } from "../core/source.ts";
import { insertJob } from "./jobs.ts";
import { behind, type Page, type Paged, paged } from "./page.ts";
import { type Fragment, read, type Scope, type Sql, type Tx, time, wake } from "./scope.ts";
import { keepSource, lockHead } from "./source-builds.ts";
import { seals } from "./sources.ts";
import { topics } from "./wakeups.ts";

export interface DeliveryRow {
  id: string;
  sourceId: string;
  event: string;
  /** null: it is about no ref that builds. */
  ref: string | null;
  status: DeliveryStatus;
  /** Why it was ignored, or what failed. */
  detail: string | null;
  buildId: string | null;
  createdAt: string;
}

/** How a delivery went on, its job and its build know. */
function view(sql: Sql, where: Fragment): Fragment {
  return sql`
    select d.id, d.source_id as "sourceId", d.event, d.ref,
      case
        when d.status = 'received' and j.status in ('failed', 'cancelled') then 'failed'
        when d.status = 'building' and b.status = 'succeeded' then 'built'
        when d.status = 'building' and b.status in ('failed', 'cancelled') then 'failed'
        else d.status end as status,
      coalesce(d.detail, b.error->>'message', j.error->>'message') as detail,
      d.build_id as "buildId", d.received_at as "createdAt"
    from deliveries d left join jobs j on j.id = d.job_id left join builds b on b.id = d.build_id where ${where}`;
}

const deliveryRow = (raw: DeliveryRow): DeliveryRow => ({ ...raw, createdAt: time(raw.createdAt) });

export async function findDelivery(sql: Sql, scope: Scope, sourceId: string, id: string): Promise<DeliveryRow | null> {
  const where = sql`d.project_id = ${scope.projectId} and d.source_id = ${sourceId} and d.id = ${id}`;
  return (await read<DeliveryRow>(sql, scope, view(sql, where))).map(deliveryRow)[0] ?? null;
}

/** A page of a source's deliveries, newest first. */
export async function listDeliveries(
  sql: Sql,
  scope: Scope,
  sourceId: string,
  page: Page,
): Promise<Paged<DeliveryRow>[]> {
  const after = behind(sql, page, sql`d.received_at`, sql`d.id`);
  const where = sql`d.project_id = ${scope.projectId} and d.source_id = ${sourceId} ${after}`;
  const rows = await read<DeliveryRow>(
    sql,
    scope,
    sql`${view(sql, where)} order by d.received_at desc, d.id limit ${page.limit}`,
  );
  return paged(rows, deliveryRow);
}

/** The source of a delivery. `secretKey` seals its repository's credentials for who will read it. */
export interface NoticedSource {
  id: string;
  projectId: string;
  secretKey: string;
}

/** What a delivery asks: to read a ref, `again` to build it also when nothing has changed. */
export type Asked = Pick<SourcePayload, "ref" | "again">;

/** A delivery as it came: something is asked, or else it is ignored for a reason. */
export interface Notice {
  key: string;
  event: string;
  about: Asked | { ignored: string };
}

/** Of each source so many deliveries are kept. */
const kept = 1_000;

/** How often reading a ref is tried: a git host that is away has about two minutes to come back. */
const readAttempts = 8;

/**
 * Records a delivery and has its ref read. One that came before has no further effect, unless reading the ref failed then.
 * @returns its id
 * @throws BerthError `not_found` when the source is gone
 */
export async function recordDelivery(tx: Tx, source: NoticedSource, { key, event, about }: Notice): Promise<string> {
  const id = newId("delivery");
  const asked = "ref" in about ? about : null;
  const ignored = "ref" in about ? null : about.ignored;
  await keepSource(tx, source.id);
  const added = await tx`
    insert into deliveries (id, source_id, project_id, delivery_key, event, ref, status, detail)
    values (${id}, ${source.id}, ${source.projectId}, ${key}, ${event}, ${asked?.ref ?? null},
      ${ignored === null ? "received" : "ignored"}, ${ignored})
    on conflict (source_id, delivery_key, (coalesce(ref, ''))) do nothing returning id`;
  if (added.length === 0) return repeated(tx, source, key, asked);
  if (asked !== null) await attachRead(tx, source, id, asked);
  // By one transaction at a time, since two would wait for each other's rows; there is another delivery after this.
  await tx`
    delete from deliveries where id in (
      select id from deliveries where source_id = ${source.id}
        and (select pg_try_advisory_xact_lock(hashtextextended(${`deliveries:${source.id}`}, 0)))
      order by received_at desc, id offset ${kept} limit 10)`;
  return id;
}

async function repeated(tx: Tx, source: NoticedSource, key: string, asked: Asked | null): Promise<string> {
  const [before] = await tx<{ id: string; failed: boolean }[]>`
    select d.id, d.status = 'received' and j.status in ('failed', 'cancelled') as failed
    from deliveries d left join jobs j on j.id = d.job_id
    where d.source_id = ${source.id} and d.delivery_key = ${key} and coalesce(d.ref, '') = ${asked?.ref ?? ""}`;
  if (before === undefined) throw new Error("a delivery that was there is gone");
  if (before.failed && asked !== null) await attachRead(tx, source, before.id, asked);
  return before.id;
}

/** Has the ref of a delivery read once more. */
export async function attachRead(tx: Tx, source: NoticedSource, deliveryId: string, asked: Asked): Promise<void> {
  const jobId = await queueRead(tx, source, asked);
  await tx`
    update deliveries set status = 'received', job_id = ${jobId}, build_id = null, detail = null
    where id = ${deliveryId}`;
  await wake(tx, topics.resource(deliveryId));
}

/**
 * The job that will read a ref from now on: the one that waits already, or else a new one behind the job that builds or
 * reads the ref at present. However many ask meanwhile, the ref is read and built once more.
 */
async function queueRead(tx: Tx, source: NoticedSource, asked: Asked): Promise<string> {
  const head = await lockHead(tx, source, asked.ref);
  const busy = await tx<{ id: string; status: string }[]>`
    select id, status from jobs
    where subject_id = ${source.id} and kind = 'source' and status in ('queued', 'running') and payload->>'ref' = ${asked.ref}
    order by created_at desc for update`;
  const waiting = busy.find(({ status }) => status === "queued");
  const id = waiting?.id ?? newId("job");
  const payload = await payloadFor(tx, source, id, asked);
  if (waiting === undefined) {
    const { projectId } = source;
    const afterJobId = head.openJobId ?? busy[0]?.id ?? null;
    const job = { id, projectId, kind: "source" as const, subjectId: source.id, payload, afterJobId };
    await insertJob(tx, { ...job, maxAttempts: readAttempts });
  } else {
    // One that waits for its next attempt need not any more.
    await tx`
      update jobs set payload = payload - array['auth', 'secrets', 'registryAuth'] || ${JSON.stringify(payload)}::text::jsonb, run_at = now(), attempt = 0
      where id = ${id}`;
    // Who claims passes by the row while it is locked.
    await wake(tx, topics.jobs);
  }
  return id;
}

async function payloadFor(
  tx: Tx,
  source: NoticedSource,
  jobId: string,
  asked: Asked,
): Promise<SourcePayload & Record<string, unknown>> {
  const buildJobId = newId("job");
  const [row] = await tx<{ url: string | null; sealed: string | null; seals: SourceSeals }[]>`
    select url, auth_sealed as sealed, ${seals(tx)} as seals from sources where id = ${source.id}`;
  const { secretKey } = source;
  const sealFor = (kind: "source" | "build", id: string, text: string) =>
    seal(secretKey, jobSealPurpose({ kind, id }), text);
  const forBuild = row === undefined ? {} : sealedForBuild(secretKey, source.id, row.seals, buildJobId);
  const payload: SourcePayload & Record<string, unknown> = { ...asked, ...forBuild, buildJobId };
  if (typeof row?.url === "string" && forBuild.secrets !== undefined) payload.secretsUrl = row.url;
  if (row !== undefined && row.url !== null && row.sealed !== null) {
    const text = open(secretKey, `auth:${source.id}`, row.sealed);
    const { origin } = new URL(row.url);
    payload.auth = { origin, read: sealFor("source", jobId, text), build: sealFor("build", buildJobId, text) };
  }
  return payload;
}
