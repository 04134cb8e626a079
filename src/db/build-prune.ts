import type { Tx } from "./scope.ts";

/**
 * Forgets what finished build steps of a project made, and what they have downloaded. Builds that run keep what they have found.
 * @returns how many, and the bytes (compressed) of their layers that no image of the project has
 */
export async function pruneSteps(tx: Tx, projectId: string): Promise<{ steps: number; bytes: number }> {
  const [pruned] = await tx<{ steps: number; bytes: number }[]>`
    with gone as (delete from build_cache where project_id = ${projectId} returning result->'layer' as layer, result ? 'layer' as is_step),
    layers as (
      select distinct layer->>'digest' as digest, (layer->>'sizeBytes')::bigint as bytes from gone
      where layer->>'digest' is not null),
    imaged as (
      select l->>'digest' as digest from images, jsonb_array_elements(layers) l where project_id = ${projectId})
    select (select count(*) from gone where is_step)::int as steps,
      (select coalesce(sum(bytes), 0)::float8 from layers where digest not in (table imaged)) as bytes`;
  return pruned ?? { steps: 0, bytes: 0 };
}
