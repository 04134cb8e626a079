import type { Db } from "./connect.ts";
import { sql } from "./drizzle.ts";

/** Deletes what has served its time: events, deliveries and ended jobs after 7 days, idempotency keys after one, unused steps after 14. */
export async function deleteExpired(db: Db): Promise<void> {
  await db.execute(sql`delete from events where at < now() - interval '7 days'`);
  await db.execute(sql`delete from idempotency_keys where created_at < now() - interval '1 day'`);
  // Before their jobs, which know how they ended.
  await db.execute(sql`delete from deliveries where received_at < now() - interval '7 days'`);
  await db.execute(sql`delete from jobs where finished_at < now() - interval '7 days'`);
  await db.execute(sql`delete from build_cache where used_at < now() - interval '14 days'`);
}

/** The diff ids of layers that images of any project or cached steps are made of. */
export async function neededLayers(db: Db): Promise<Set<string>> {
  const rows = await db.execute<{ id: string }>(sql`
    select l->>'diffId' id from images, jsonb_array_elements(layers) l
    union select result->'layer'->>'diffId' from build_cache`);
  return new Set([...rows].map((row) => row.id));
}

/** The diff ids of layers that containers of the host are made of. */
export async function layersInUse(db: Db, hostId: string): Promise<Set<string>> {
  const rows = await db.execute<{ id: string }>(sql`
    select distinct l->>'diffId' id from containers c
    join images i on i.project_id = c.project_id and i.digest = c.image_digest, jsonb_array_elements(i.layers) l
    where c.host_id = ${hostId}`);
  return new Set([...rows].map((row) => row.id));
}
