import type { Scope, Tx } from "./scope.ts";

/** Notes that the project has sent a blob, which one of its manifests may name within a day. */
export async function recordUpload(
  tx: Tx,
  { projectId }: Scope,
  blob: { digest: string; sizeBytes: number },
): Promise<void> {
  await tx`delete from uploaded_blobs where project_id = ${projectId} and at < now() - interval '1 day'`;
  await tx`
    insert into uploaded_blobs (project_id, digest, size_bytes) values (${projectId}, ${blob.digest}, ${blob.sizeBytes})
    on conflict (project_id, digest) do update set at = now()`;
}
