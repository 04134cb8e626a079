import { BerthError } from "../../core/errors.ts";

/** Ids within a container's user namespace: 0 to 65,535. */
export const idCount = 65_536;

/** Who a process runs as, by ids inside the container. */
export interface User {
  uid: number;
  gid: number;
  additionalGids: number[];
  /** The account's home directory, `/` when it has no account. */
  home: string;
}

interface Account {
  name: string;
  uid: number;
  gid: number;
  home: string;
}

interface Group {
  name: string;
  gid: number;
  members: string[];
}

/**
 * Resolves an image's `User` (`""`, `name`, `uid`, `name:group`, `uid:gid`) against the image's own account files, as
 * Docker does: a name must exist, a number need not; without a group the account's own and supplementary groups hold.
 * @throws BerthError `invalid_user` for an unknown name and for an id that the container's range does not have: it is
 *   never replaced by another, least of all by 0.
 */
export function resolveUser(text: string, passwd: string, group: string): User {
  const colon = text.indexOf(":");
  const userText = colon < 0 ? text : text.slice(0, colon);
  const groupText = colon < 0 ? "" : text.slice(colon + 1);
  const accounts = parseAccounts(passwd);
  const groups = parseGroups(group);

  const wantedUid = parseId(userText === "" ? "0" : userText);
  const account =
    accounts.find((a) => a.name === userText) ??
    (wantedUid === null ? undefined : accounts.find((a) => a.uid === wantedUid));
  const uid = account?.uid ?? wantedUid;
  if (uid === null || uid >= idCount) throw unknown(text, `no user ${JSON.stringify(userText)}`);

  if (groupText !== "") {
    const gid = groups.find((g) => g.name === groupText)?.gid ?? parseId(groupText);
    if (gid === null || gid >= idCount) throw unknown(text, `no group ${JSON.stringify(groupText)}`);
    return { uid, gid, additionalGids: [], home: account?.home ?? "/" };
  }
  const gid = account?.gid ?? 0;
  if (gid >= idCount) throw unknown(text, `no group ${String(gid)}`);
  const supplementary =
    account === undefined ? [] : groups.filter((g) => g.members.includes(account.name)).map((g) => g.gid);
  return {
    uid,
    gid,
    additionalGids: [...new Set(supplementary)].filter((id) => id < idCount),
    home: account?.home ?? "/",
  };
}

function unknown(text: string, what: string): BerthError {
  return new BerthError(
    "invalid_user",
    `The user ${JSON.stringify(text.slice(0, 200))} can't be used: the image has ${what.slice(0, 200)} (ids go from 0 to ${String(idCount - 1)}).`,
  );
}

/** A decimal id, or null for what is none. Ids that the range lacks are returned as they are, to be refused. */
function parseId(text: string): number | null {
  return /^\d{1,10}$/.test(text) ? Number(text) : null;
}

/** Lines of passwd(5); malformed ones are skipped, as every libc does. */
function parseAccounts(text: string): Account[] {
  return fields(text, 6).flatMap(([name = "", , uidText = "", gidText = "", , home = ""]) => {
    const uid = parseId(uidText);
    const gid = parseId(gidText);
    return uid === null || gid === null || name === ""
      ? []
      : [{ name, uid, gid, home: home.startsWith("/") ? home : "/" }];
  });
}

/** Lines of group(5). */
function parseGroups(text: string): Group[] {
  return fields(text, 3).flatMap(([name = "", , gidText = "", members = ""]) => {
    const gid = parseId(gidText);
    return gid === null || name === "" ? [] : [{ name, gid, members: members.split(",").filter((m) => m !== "") }];
  });
}

function fields(text: string, least: number): string[][] {
  return text
    .split("\n")
    .map((line) => line.split(":"))
    .filter((parts) => parts.length >= least);
}
