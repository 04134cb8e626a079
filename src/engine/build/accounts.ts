import { resolveIn } from "../../build/tree.ts";
import { resolveUser } from "../../isolation/plan/user.ts";
import type { FileTree } from "./file-entry.ts";

/** Accounts files are small; a tenant's that is not is read up to here. */
const maxBytes = 1 << 20;

/**
 * The ids that `--chown=user[:group]` names, looked up in the image's own account files. Without a group it is the
 * user's, and for a number that has no account the same number, as `chown` and BuildKit have it.
 * @throws BerthError `invalid_user`.
 */
export async function resolveOwner(text: string, root: FileTree): Promise<{ uid: number; gid: number }> {
  const numbers = /^(\d{1,5})(?::(\d{1,5}))?$/.exec(text);
  if (numbers !== null && Number(numbers[1]) < 65_536 && Number(numbers[2] ?? 0) < 65_536) {
    return { uid: Number(numbers[1]), gid: Number(numbers[2] ?? numbers[1]) };
  }
  const [passwd, group] = await Promise.all([readText(root, "/etc/passwd"), readText(root, "/etc/group")]);
  const { uid, gid } = resolveUser(text, passwd, group);
  return { uid, gid };
}

async function readText(root: FileTree, path: string): Promise<string> {
  const { entry, path: found, blocked } = await resolveIn(root, path);
  if (blocked || entry?.type !== "file") return "";
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const part of root.read(found, entry)) {
    parts.push(part);
    bytes += part.length;
    if (bytes >= maxBytes) break;
  }
  return Buffer.concat(parts).toString("utf8", 0, maxBytes);
}
