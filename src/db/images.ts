import type { ImageConfig, Layer } from "../core/image.ts";
import type { KnownImage } from "../core/image-choice.ts";
import { hubReference, type ImageReference, repositoryName } from "../core/reference.ts";
import { behind, type Page, type Paged, paged } from "./page.ts";
import type { Scope } from "./scope.ts";
import { type Fragment, read, type Sql, type Tx, time } from "./scope.ts";

export interface ImageRow {
  digest: string;
  mediaType: string;
  config: ImageConfig;
  layers: Layer[];
  sizeBytes: number;
  /** `repository:tag`, or `repository@digest` of one that was pulled by digest, sorted. */
  tags: string[];
  createdAt: string;
}

type Raw = Omit<ImageRow, "sizeBytes"> & { sizeBytes: string };

function view(sql: Sql, where: Fragment): Fragment {
  return sql`
    select i.digest, i.media_type as "mediaType", i.config, i.layers, i.size_bytes as "sizeBytes",
      (select coalesce(json_agg(t.repository || case when t.tag like '@%' then '' else ':' end || t.tag order by t.repository, t.tag), '[]')
        from tags t where t.project_id = i.project_id and t.digest = i.digest) as tags,
      i.created_at as "createdAt"
    from images i where ${where}`;
}

const imageRow = (raw: Raw): ImageRow => ({ ...raw, sizeBytes: Number(raw.sizeBytes), createdAt: time(raw.createdAt) });

export async function findImage(sql: Sql, scope: Scope, digest: string): Promise<ImageRow | null> {
  const rows = await read<Raw>(sql, scope, view(sql, sql`i.project_id = ${scope.projectId} and i.digest = ${digest}`));
  return rows.map(imageRow)[0] ?? null;
}

/** A page of the project's images, newest first. */
export async function listImages(
  sql: Sql,
  scope: Scope,
  filter: { labels: Record<string, string>; repository?: string | undefined },
  page: Page,
): Promise<Paged<ImageRow>[]> {
  const after = behind(sql, page, sql`i.created_at`, sql`i.digest`);
  const labels =
    Object.keys(filter.labels).length === 0
      ? sql``
      : sql`and i.config @> ${JSON.stringify({ config: { Labels: filter.labels } })}::text::jsonb`;
  const repository =
    filter.repository === undefined
      ? sql``
      : sql`and exists (select from tags t where t.project_id = i.project_id and t.digest = i.digest
          and t.repository = ${filter.repository})`;
  const where = sql`i.project_id = ${scope.projectId} ${labels} ${repository} ${after}`;
  const rows = await read<Raw>(
    sql,
    scope,
    sql`${view(sql, where)} order by i.created_at desc, i.digest limit ${page.limit}`,
  );
  return paged(rows, imageRow);
}

/**
 * Looks a reference up. `own` decides per repository: with a `web:1` of the project's, `web:2` is never a stranger's.
 * A digest in the reference is looked up as such, whatever the tags.
 */
export async function knownImage(sql: Sql, scope: Scope, reference: ImageReference): Promise<KnownImage> {
  const { projectId } = scope;
  const digestOf = (repository: string) =>
    reference.digest === null
      ? sql`(select digest from tags where project_id = ${projectId} and repository = ${repository} and tag = ${reference.tag ?? "latest"})`
      : sql`(select digest from images where project_id = ${projectId} and digest = ${reference.digest})`;
  const own =
    reference.registry === null
      ? sql`exists (select from tags where project_id = ${projectId} and repository = ${reference.repository}) as own,
          ${digestOf(reference.repository)} as "ownDigest"`
      : sql`false as own, null::text as "ownDigest"`;
  const hub = digestOf(repositoryName(hubReference(reference)));
  const [known] = await read<KnownImage>(sql, scope, sql`select ${own}, ${hub} as "hubDigest"`);
  return known ?? { own: false, ownDigest: null, hubDigest: null };
}

/** Adds an image to the project; one that it has stays as it is. */
export async function insertImage(
  tx: Tx,
  projectId: string,
  image: Omit<ImageRow, "tags" | "createdAt"> & { manifest: Record<string, unknown> },
): Promise<void> {
  const json = (value: object) => tx`${JSON.stringify(value)}::text::jsonb`;
  await tx`
    insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
    values (${projectId}, ${image.digest}, ${image.mediaType}, ${json(image.manifest)}, ${json(image.config)},
      ${json(image.layers)}, ${image.sizeBytes})
    on conflict do nothing`;
}

/** Points a tag at an image of the project, whatever it pointed at before. */
export async function putTag(
  tx: Tx,
  tag: { projectId: string; repository: string; tag: string; digest: string },
): Promise<void> {
  await tx`
    insert into tags (project_id, repository, tag, digest)
    values (${tag.projectId}, ${tag.repository}, ${tag.tag}, ${tag.digest})
    on conflict (project_id, repository, tag) do update set digest = excluded.digest, updated_at = now()`;
}

/** Takes a tag away; how many tags the image has left, null when there was no such tag. */
export async function deleteTag(
  tx: Tx,
  tag: { projectId: string; repository: string; tag: string },
): Promise<{ digest: string; left: number } | null> {
  const rows = await tx<{ digest: string }[]>`
    delete from tags where project_id = ${tag.projectId} and repository = ${tag.repository} and tag = ${tag.tag}
    returning digest`;
  const digest = rows[0]?.digest;
  if (digest === undefined) return null;
  const [count] = await tx<{ left: number }[]>`
    select count(*)::int as left from tags where project_id = ${tag.projectId} and digest = ${digest}`;
  return { digest, left: count?.left ?? 0 };
}

/** The names of containers that need the image, a few of them. */
export async function imageUsers(tx: Tx, projectId: string, digest: string): Promise<string[]> {
  const rows = await tx<{ name: string }[]>`
    select name from containers where project_id = ${projectId} and image_digest = ${digest} and wanted <> 'removed'
    order by created_at limit 5`;
  return rows.map((row) => row.name);
}

/** Takes the image and its tags from the project; its blobs go when nothing refers to them. False: there was none. */
export async function deleteImage(tx: Tx, projectId: string, digest: string): Promise<boolean> {
  const rows = await tx`delete from images where project_id = ${projectId} and digest = ${digest} returning digest`;
  return rows.length === 1;
}
