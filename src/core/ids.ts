import { customAlphabet } from "nanoid";

/** Ids are a noun's prefix and 20 characters of `0-9a-z` (103 bits): safe in URLs, file names and cgroup names. */
const random = customAlphabet("0123456789abcdefghijklmnopqrstuvwxyz", 20);

export const idPrefixes = {
  build: "bld",
  container: "ctr",
  port: "prt",
  job: "job",
  host: "hst",
  joinToken: "jtk",
  project: "prj",
  token: "tok",
  source: "src",
  delivery: "dlv",
  deployment: "dep",
  request: "req",
} as const;

export type Noun = keyof typeof idPrefixes;

/** A new id, `ctr_4f9k…` for a container. */
export function newId(noun: Noun): string {
  return `${idPrefixes[noun]}_${random()}`;
}

/** Whether the text has the form of an id of this noun; it need not exist. */
export function isId(noun: Noun, text: string): boolean {
  return text.startsWith(`${idPrefixes[noun]}_`) && /^[0-9a-z]{20}$/.test(text.slice(idPrefixes[noun].length + 1));
}
