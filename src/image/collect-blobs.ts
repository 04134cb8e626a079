import type { UnneededBlob } from "../core/blob-store.ts";
import type { ClusterStore } from "./blobs.ts";

/** What the database knows of blobs. */
export interface BlobRecords {
  /** Those that were recorded as unneeded, and that nobody can count on any longer, unless a row needs them. */
  due: () => Promise<UnneededBlob[]>;
  /** The digests that some row needs. */
  needed: () => Promise<Set<string>>;
  /** Records which of the store's blobs no row needs. */
  recordUnneeded: (digests: readonly string[]) => Promise<void>;
  /** Calls `remove` unless the blob has been claimed since it was recorded; whether it did. */
  removeUnneeded: (blob: UnneededBlob, remove: () => Promise<void>) => Promise<boolean>;
}

/** What a writer that died left goes after this time, as do copies of what is kept elsewhere. */
const leftoverMs = 60 * 60 * 1000;

/**
 * Removes blobs that no row needs, in two rounds: a blob is first recorded as unneeded, and removed by a later round when
 * nobody has claimed it since and no job runs that may have found it before. Any number of these may run at once, beside
 * any jobs. Returns how many were removed.
 */
export async function collectBlobs(store: ClusterStore, records: BlobRecords): Promise<number> {
  await store.tidy(leftoverMs);
  const due = await records.due();
  // After what is due: a job that has ended by then has recorded what it needs, and one that runs has claimed it.
  const needed = await records.needed();
  let removed = 0;
  for (const blob of due) {
    if (needed.has(blob.digest)) continue;
    if (await records.removeUnneeded(blob, () => store.delete(blob.digest))) removed++;
  }
  const unneeded: string[] = [];
  for await (const digest of store.list()) if (!needed.has(digest)) unneeded.push(digest);
  await records.recordUnneeded(unneeded);
  return removed;
}
