import { digestPattern } from "../core/reference.ts";
import { read, type Scope, type Sql } from "./scope.ts";

// What an OCI registry is asked, of the images of one project.

/** The image that a tag or digest means in a repository of the project (`tags.repository`); null: none. */
export async function findManifest(
  sql: Sql,
  scope: Scope,
  repository: string,
  reference: string,
): Promise<{ digest: string; mediaType: string } | null> {
  const meant = digestPattern.test(reference) ? sql`t.digest = ${reference}` : sql`t.tag = ${reference}`;
  const [row] = await read<{ digest: string; mediaType: string }>(
    sql,
    scope,
    sql`select i.digest, i.media_type as "mediaType" from tags t join images i using (project_id, digest)
      where t.project_id = ${scope.projectId} and t.repository = ${repository} and ${meant} limit 1`,
  );
  return row ?? null;
}

/** Whether an image of the project's repository has this blob (its manifest, its config or a layer), or the project has sent it. */
export async function hasBlob(sql: Sql, scope: Scope, repository: string, digest: string): Promise<boolean> {
  const { projectId } = scope;
  const rows = await read(
    sql,
    scope,
    sql`(select from tags t join images i using (project_id, digest)
      where t.project_id = ${projectId} and t.repository = ${repository}
        and (i.digest = ${digest} or i.manifest->'config'->>'digest' = ${digest}
          or i.layers @> ${JSON.stringify([{ digest }])}::text::jsonb) limit 1)
      union all
      (select from uploaded_blobs where project_id = ${projectId} and digest = ${digest} and at > now() - interval '1 day')`,
  );
  return rows.length > 0;
}

/** Tags of a repository in their order, behind `last`; null: the project has no such repository. */
export async function repositoryTags(
  sql: Sql,
  scope: Scope,
  repository: string,
  page: { n: number; last: string },
): Promise<string[] | null> {
  const [row] = await read<{ tags: string[] | null; known: boolean }>(
    sql,
    scope,
    sql`select
      (select array_agg(tag) from (
        select tag from tags where project_id = ${scope.projectId} and repository = ${repository} and tag not like '@%'
          and tag collate "C" > ${page.last} order by tag collate "C" limit ${page.n}) page) as tags,
      exists (select from tags where project_id = ${scope.projectId} and repository = ${repository}) as known`,
  );
  return row?.known === true ? (row.tags ?? []) : null;
}
