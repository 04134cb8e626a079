import { Flags } from "./flags.ts";
import { heredocText, soleHeredoc } from "./heredoc.ts";
import type { CopyInstruction, InlineFile } from "./instruction.ts";
import type { LexedInstruction } from "./lex.ts";
import { dockerfileError, quoted } from "./source.ts";
import { jsonStrings, splitSpaces } from "./words.ts";

const common = { chown: "text", chmod: "text", link: "boolean", exclude: "list" } as const;
const copyFlags = { ...common, from: "text", parents: "boolean" } as const;
const addFlags = { ...common, checksum: "text", "keep-git-dir": "boolean", unpack: "boolean" } as const;

/** COPY and ADD: flags, sources (paths, URLs, heredocs) and the destination, which is the last word. */
export function parseCopy(lexed: LexedInstruction, escape: string): CopyInstruction {
  const kind = lexed.keyword === "COPY" ? "copy" : "add";
  const { flags, rest } = Flags.take(lexed.keyword, lexed.args, escape, kind === "copy" ? copyFlags : addFlags);
  const words = jsonStrings(rest) ?? splitHeredocWords(rest.text, escape) ?? splitSpaces(rest).map((word) => word.text);
  const destination = words.at(-1);
  if (destination === undefined || words.length < 2) {
    throw dockerfileError(lexed.at, `${lexed.keyword} needs at least one source and a destination.`);
  }
  if (soleHeredoc(destination, escape) !== null) {
    throw dockerfileError(rest.at(), `a heredoc can't be the destination of ${lexed.keyword}.`);
  }
  const sources: string[] = [];
  const inline: InlineFile[] = [];
  for (const word of words.slice(0, -1)) {
    const heredoc = lexed.heredocs.find(({ name }) => name === soleHeredoc(word, escape)?.name);
    if (heredoc === undefined) sources.push(word);
    else if (/[/\0]|^\.{0,2}$/.test(heredoc.name)) {
      throw dockerfileError(rest.at(), `the heredoc's name ${quoted(heredoc.name)} can't be a file's name.`);
    } else inline.push({ name: heredoc.name, content: heredocText(heredoc), expand: heredoc.expand });
  }
  const from = flags.text("from");
  if (from !== null && inline.length > 0)
    throw dockerfileError(rest.at(), "--from and a heredoc can't stand together.");
  return {
    at: lexed.at,
    text: `${lexed.keyword} ${lexed.args.text.replace(/\s+/g, " ")}`,
    kind,
    sources,
    inline,
    destination,
    from,
    chown: flags.text("chown"),
    chmod: flags.text("chmod"),
    link: flags.boolean("link") ?? false,
    parents: flags.boolean("parents") ?? false,
    excludes: flags.list("exclude").map(({ text }) => text),
    checksum: flags.text("checksum"),
    keepGitDir: flags.boolean("keep-git-dir") ?? false,
    unpack: flags.boolean("unpack"),
  };
}

/** With `<< NAME` (a space within the opening) white space alone does not split words; null: there is no such opening. */
function splitHeredocWords(text: string, escape: string): string[] | null {
  if (!/<<-?\s/.test(text)) return null;
  const compact = text.replace(/(<<-?)\s+(?=["'\p{L}_])/gu, "$1");
  return soleHeredoc(compact.split(/\s+/)[0] ?? "", escape) === null ? null : compact.split(/\s+/);
}
