import type { UnneededBlob } from "../core/blob-store.ts";
import type { Pool, Tx } from "./scope.ts";

/** Keeps blobs that no row needs from being collected for an hour, and as long as jobs run that have begun by then. */
export async function claimBlob(sql: Pool, digest: string): Promise<void> {
  // Waits while the blob is being removed.
  await sql`select berth_claim_blob(${digest})`;
}

/** The digests that some row needs. */
export async function neededBlobs(sql: Pool): Promise<Set<string>> {
  const rows = await sql<{ digest: string }[]>`select berth_needed_blobs() as digest`;
  return new Set(rows.map(({ digest }) => digest));
}

/**
 * Records which blobs no row needs: for those that are recorded already, since when stays. A record has its time once it is
 * seen: who claims the blob before that is older than the record, and who claims it after that takes the record away.
 */
export async function recordUnneeded(sql: Pool, digests: readonly string[]): Promise<void> {
  const all = [...digests];
  // One instance at a time: two that record the same blobs in another order would wait for each other.
  const alone = (tx: Tx) => tx`select pg_advisory_xact_lock(hashtextextended('unneeded blobs', 0))`;
  await sql.begin((tx) => [
    alone(tx),
    tx`delete from unneeded_blobs where digest <> all (${all}::text[])`,
    tx`insert into unneeded_blobs (digest, since)
      select digest, 'infinity' from unnest(${all}::text[]) digest on conflict do nothing`,
  ]);
  // In a transaction of its own. What another instance has recorded just now, or before it died, gets its time as well.
  await sql.begin((tx) => [
    alone(tx),
    tx`update unneeded_blobs set since = clock_timestamp() where since = 'infinity'`,
  ]);
}

/** The recorded blobs that nobody can count on any longer, unless a row needs them. */
export async function dueBlobs(sql: Pool): Promise<UnneededBlob[]> {
  return sql<UnneededBlob[]>`
    select digest, since::text as since from unneeded_blobs where since < berth_unneeded_before()`;
}

/**
 * Has a blob that was due removed unless somebody has claimed it meanwhile, even when it was recorded as unneeded once more
 * after that: who claimed it may need it by now. Whoever claims it from now on waits, and then sees it gone.
 */
export async function removeUnneeded(
  sql: Pool,
  { digest, since }: UnneededBlob,
  remove: () => Promise<void>,
): Promise<boolean> {
  return sql.begin(async (tx) => {
    const taken = await tx`
      delete from unneeded_blobs where digest = ${digest} and since = ${since}::text::timestamptz returning digest`;
    if (taken.length === 0) return false;
    await remove();
    return true;
  });
}
