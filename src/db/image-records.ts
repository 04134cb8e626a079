import type { Image, ImageConfig, Layer } from "../core/image.ts";
import { type ImageReference, repositoryName } from "../core/reference.ts";
import type { Db, Transaction } from "./connect.ts";
import { and, eq, or, type SQL, sql } from "./drizzle.ts";
import { images, tags } from "./schema.ts";
import { channel, topics } from "./wakeups.ts";

/** The project's image of that repository by tag or digest; null: it has none such. */
export async function findImage(
  db: Db | Transaction,
  projectId: string,
  reference: ImageReference,
): Promise<Image | null> {
  const repository = repositoryName(reference);
  const rows = await db
    .select({ digest: images.digest, mediaType: images.mediaType, config: images.config, layers: images.layers })
    .from(tags)
    .innerJoin(images, and(eq(images.projectId, tags.projectId), eq(images.digest, tags.digest)))
    .where(
      and(
        eq(tags.projectId, projectId),
        eq(tags.repository, repository),
        // A digest may be an index's, of which the image is the part for this platform; its tag says so.
        reference.digest === null
          ? eq(tags.tag, reference.tag ?? "latest")
          : or(eq(tags.digest, reference.digest), eq(tags.tag, `@${reference.digest}`)),
      ),
    )
    .limit(1);
  return rows[0] ?? null;
}

/** The project's image of that digest; null: it has none such. */
export async function imageByDigest(db: Db, projectId: string, digest: string): Promise<Image | null> {
  const rows = await db
    .select({ digest: images.digest, mediaType: images.mediaType, config: images.config, layers: images.layers })
    .from(images)
    .where(and(eq(images.projectId, projectId), eq(images.digest, digest)))
    .limit(1);
  return rows[0] ?? null;
}

/** Whether the project has any image under this repository name; then it never means a stranger's on Docker Hub. */
export async function hasRepository(db: Db | Transaction, projectId: string, repository: string): Promise<boolean> {
  const rows = await db
    .select({ tag: tags.tag })
    .from(tags)
    .where(and(eq(tags.projectId, projectId), eq(tags.repository, repository)))
    .limit(1);
  return rows.length === 1;
}

/** Whether an image of the project has this very layer; only then may a pull count on the host's copy of it. */
export async function projectHasLayer(
  db: Db,
  projectId: string,
  layer: Pick<Layer, "digest" | "diffId">,
): Promise<boolean> {
  const part = JSON.stringify([{ digest: layer.digest, diffId: layer.diffId }]);
  const rows = await db
    .select({ digest: images.digest })
    .from(images)
    .where(and(eq(images.projectId, projectId), sql`${images.layers} @> ${part}::jsonb`))
    .limit(1);
  return rows.length === 1;
}

/** An image and the names it is to have, as a build or a pull leaves them. */
export interface ImageRecord {
  digest: string;
  mediaType: string;
  manifest: Record<string, unknown>;
  config: ImageConfig;
  layers: Image["layers"];
  sizeBytes: number;
}

/** What else a record of an image depends on, and does. */
export interface RecordingOptions {
  /** A query that answers a row while the caller may write; by default it may. */
  lease?: SQL;
  /** Statements (`name as (…)`) that go with it; `lease` can be read in them. */
  also?: readonly SQL[];
  /** false: a later commit makes it durable, which comes before anybody counts on it. */
  durable?: boolean;
}

/**
 * Records an image and moves the references to it, with an event each, in one statement. Idempotent. Names are locked in
 * their order, so that builds which move the same ones don't wait for each other. False: the lease is lost, nothing was written.
 */
export async function recordImage(
  db: Db | Transaction,
  projectId: string,
  image: ImageRecord,
  references: readonly ImageReference[],
  { lease = sql`select 1`, also = [], durable = true }: RecordingOptions = {},
): Promise<boolean> {
  const { digest, mediaType, manifest, config, layers, sizeBytes } = image;
  // A pull by digest alone gets a tag that no client can write, so that the image keeps its repository.
  const tags = references.map((reference) => reference.tag ?? `@${reference.digest ?? digest}`);
  const json = (value: unknown) => sql`${JSON.stringify(value)}::jsonb`;
  const rows = await db.execute(sql`
    with lease as (${lease}),
    recorded as (
      insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
      select ${projectId}, ${digest}, ${mediaType}, ${json(manifest)}, ${json(config)}, ${json(layers)}, ${sizeBytes}::bigint from lease
      on conflict do nothing),
    named as (
      select distinct repository, tag
      from lease, unnest(${sql.param(references.map(repositoryName))}::text[], ${sql.param(tags)}::text[]) n (repository, tag)),
    tagged as (
      insert into tags (project_id, repository, tag, digest)
      select ${projectId}, repository, tag, ${digest} from named order by repository, tag
      on conflict (project_id, repository, tag) do update set digest = excluded.digest, updated_at = now()),
    told as (
      insert into events (project_id, type, subject_id, data)
      select ${projectId}, 'image.tagged', ${digest}, jsonb_build_object('reference', repository || ':' || tag) from named)
    ${sql.join(
      also.map((statement) => sql`, ${statement}`),
      sql``,
    )}
    select pg_notify(${channel}, ${topics.events(projectId)}),
      case when ${!durable}::boolean then set_config('synchronous_commit', 'off', true) end from lease`);
  return rows.length === 1;
}
