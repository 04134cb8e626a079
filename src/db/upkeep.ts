import type { Db } from "./connect.ts";
import { sql } from "./drizzle.ts";

/**
 * Deletes what has served its time: events, deliveries, ended jobs (their builds with them) and deployments after 7 days,
 * idempotency keys after one, unused steps after 14. A deployment stays while its container is there, and while it is its
 * source's last that succeeded. (A function of the database: a worker may delete nothing else.)
 */
export async function deleteExpired(db: Db): Promise<void> {
  await db.execute(sql`select berth_delete_expired()`);
}

/** Which of these diff ids are of layers that images of any project or cached steps are made of. */
export async function neededLayers(db: Db, diffIds: readonly string[]): Promise<Set<string>> {
  const rows = await db.execute<{ id: string }>(sql`
    select berth_needed_layers(${sql.param(diffIds)}::text[]) id`);
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
