import type { Image } from "../core/image.ts";
import { type PushDestination, repositoryName } from "../core/reference.ts";
import type { Db } from "./connect.ts";
import { sql } from "./drizzle.ts";

/** Repositories that one push may name as sources: each is a right that its token is asked for. */
const maxSources = 4;

/**
 * For layers of an image, another repository of the destination's registry that is known to have them, without the registry:
 * one that the project pulled an image of, or pushed one to in the days that jobs are kept. Those with most layers come first.
 */
export async function layerSources(
  db: Db,
  projectId: string,
  image: Pick<Image, "layers">,
  destination: PushDestination,
): Promise<Map<string, string>> {
  const prefix = `${destination.registry}/`;
  const digests = JSON.stringify(image.layers.map(({ digest }) => digest));
  const rows = await db.execute<{ repository: string; digests: string[] }>(sql`
    with placed as (
      select repository, digest from tags where project_id = ${projectId}
      union
      select regexp_replace(result->>'destination', ':[^:/]+$', ''), result->>'digest' from jobs
        where project_id = ${projectId} and kind = 'push' and status = 'succeeded')
    select p.repository, array_agg(distinct l->>'digest') digests
    from placed p join images i on i.project_id = ${projectId} and i.digest = p.digest, jsonb_array_elements(i.layers) l
    where starts_with(p.repository, ${prefix}) and p.repository <> ${repositoryName(destination)}
      and ${digests}::jsonb ? (l->>'digest')
    group by p.repository order by count(distinct l->>'digest') desc, p.repository limit ${maxSources}`);
  const sources = new Map<string, string>();
  for (const { repository, digests: held } of rows) {
    for (const digest of held) if (!sources.has(digest)) sources.set(digest, repository.slice(prefix.length));
  }
  return sources;
}
