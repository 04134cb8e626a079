import { readFileSync } from "node:fs";
import { userInfo } from "node:os";

/** The API's user, who also owns the blobs, and the database's. */
export const apiUser = "berth";
export const databaseUser = "berth-db";

export interface User {
  name: string;
  uid: number;
  gid: number;
}

/** A user of this machine. @throws Error when there is none of this name. */
export function findUser(name: string): User {
  const fields = readFileSync("/etc/passwd", "utf8")
    .split("\n")
    .map((line) => line.split(":"))
    .find(([known]) => known === name);
  if (fields === undefined) throw new Error(`the system user ${name} does not exist; npm start makes it`);
  return { name, uid: Number(fields[2]), gid: Number(fields[3]) };
}

/** argv before a program that makes it run as the user, with no way back to root. */
export function asUser(user: User): string[] {
  const ids = [`--reuid=${String(user.uid)}`, `--regid=${String(user.gid)}`, "--clear-groups"];
  return ["/usr/bin/setpriv", ...ids, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"];
}

/** The user of this process. */
export function currentUser(): User {
  const { username, uid, gid } = userInfo();
  return { name: username, uid, gid };
}
