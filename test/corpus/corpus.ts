import { readFileSync } from "node:fs";
import { join } from "node:path";

/** A public Dockerfile that the parser has to take. It is listed and not kept: each is its authors'. */
export interface CorpusEntry {
  /** In hex, of the file's bytes; its name in `corpusDir`. */
  sha256: string;
  url: string;
  /** Build arguments that it can't be planned without. */
  args: Record<string, string>;
}

/** Where `test/corpus/fetch.ts` puts the files; ignored by git. */
export const corpusDir = join(import.meta.dirname, "../../.cache/corpus");

/** Lines of list.txt: `sha256 url [NAME=value …]`. */
export function corpusList(): CorpusEntry[] {
  const text = readFileSync(join(import.meta.dirname, "list.txt"), "utf8");
  return text
    .trim()
    .split("\n")
    .map((line) => {
      const [sha256 = "", url = "", ...args] = line.split(" ");
      return {
        sha256,
        url,
        args: Object.fromEntries(args.map((arg) => [arg.split("=", 1)[0] ?? "", arg.slice(arg.indexOf("=") + 1)])),
      };
    });
}
