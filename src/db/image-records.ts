import type { Image, ImageConfig, Layer } from "../core/image.ts";
import { type ImageReference, repositoryName } from "../core/reference.ts";
import type { Db, Transaction } from "./connect.ts";
import { and, eq, or, sql } from "./drizzle.ts";
import { notify } from "./notify.ts";
import { images, tags } from "./schema.ts";
import { topics } from "./wakeups.ts";

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

/** Records an image and moves the references to it, with an event each, in the caller's transaction. Idempotent. */
export async function recordImage(
  tx: Transaction,
  projectId: string,
  image: ImageRecord,
  references: readonly ImageReference[],
): Promise<void> {
  await tx
    .insert(images)
    .values({ projectId, ...image })
    .onConflictDoNothing();
  for (const reference of references) {
    // A pull by digest alone gets a tag that no client can write, so that the image keeps its repository.
    const tag = reference.tag ?? `@${reference.digest ?? image.digest}`;
    const repository = repositoryName(reference);
    await tx
      .insert(tags)
      .values({ projectId, repository, tag, digest: image.digest })
      .onConflictDoUpdate({
        target: [tags.projectId, tags.repository, tags.tag],
        set: { digest: image.digest, updatedAt: sql`now()` },
      });
    // The columns that a worker may write: an event's time and place are the database's to say.
    await tx.execute(sql`
      insert into events (project_id, type, subject_id, data)
      values (${projectId}, 'image.tagged', ${image.digest}, ${JSON.stringify({ reference: `${repository}:${tag}` })}::jsonb)`);
  }
  await notify(tx, topics.events(projectId));
}
