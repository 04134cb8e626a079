import { randomUUID } from "node:crypto";
import { chmod, mkdir, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { BerthError } from "../../core/errors.ts";
import { askGit } from "./program.ts";

/** The branch that an empty repository takes for its default until something is pushed. */
const firstBranch = "main";
const leftoverMs = 24 * 60 * 60_000;
/** Where a repository has a note of each push that goes on. */
const notes = "berth-pushes";
/** So many packs are made one: each push adds one. */
const maxPacks = 50;

/** The refs that one push may change: each is a file. */
const maxRefs = 100;

/**
 * The hooks. `pre-receive` refuses a push that changes too many refs. `post-receive` runs when refs were updated: it tells
 * which to whoever started git, on descriptor 3, with an empty line at the end, and prints what it is answered there: git
 * sends that to the client's terminal.
 */
const hooks = {
  "pre-receive": `#!/bin/sh
n=0
while read -r update; do n=$((n + 1)); done
[ "$n" -le ${String(maxRefs)} ] || { echo "A push may change ${String(maxRefs)} refs, and this one has $n."; exit 1; }
`,
  "post-receive": `#!/bin/sh
while read -r update; do echo "$update"; done >&3
echo >&3 && exec cat <&3
`,
};

/** The note that a push goes on. */
export interface PushNote {
  /** Its builds have begun, or never will. */
  known(): Promise<void>;
  /** Its builds are to be begun later, as those of a push of an earlier process. */
  leave(): void;
}

/** The repositories that are pushed to Berth: bare ones, one a source, below a directory of the API's own. */
export class Repositories {
  readonly #directory: string;
  readonly #maxBytes: number;
  /** The last of each repository's work that goes one after the other. */
  readonly #busy = new Map<string, Promise<unknown>>();

  #hooksWritten: Promise<void> | null = null;
  /** Notes of pushes that this process attends to. */
  readonly #own = new Set<string>();
  /** What one push may bring. */
  readonly maxPackBytes: number;

  /** Bytes of one repository, and of one push. */
  constructor(directory: string, limits: { repositoryBytes: number; packBytes: number }) {
    this.#directory = directory;
    this.#maxBytes = limits.repositoryBytes;
    this.maxPackBytes = limits.packBytes;
  }

  /** Where the hooks are. */
  get hooks(): string {
    return `${this.#directory}/hooks`;
  }

  pathOf(projectId: string, sourceId: string): string {
    return `${this.#directory}/${projectId}/${sourceId}.git`;
  }

  /** Makes the repository if it is not there; it appears whole. */
  async ensure(projectId: string, sourceId: string): Promise<string> {
    this.#hooksWritten ??= writeHooks(this.hooks).catch((error: unknown) => {
      this.#hooksWritten = null;
      throw error;
    });
    await this.#hooksWritten;
    const path = this.pathOf(projectId, sourceId);
    if ((await stat(path).catch(() => null)) !== null) return path;
    await mkdir(`${this.#directory}/${projectId}`, { recursive: true });
    const made = `${this.#directory}/${projectId}/.${randomUUID()}`;
    try {
      await mkdir(made, { mode: 0o700 });
      const init = ["init", "--quiet", "--bare", "--template=", `--initial-branch=${firstBranch}`];
      if ((await askGit(made, init)) === null) throw new Error("git init failed");
      await mkdir(`${made}/info`, { recursive: true });
      // Files marked export-ignore belong to a build's context: a checkout has them.
      await writeFile(`${made}/info/attributes`, "* -export-ignore -export-subst\n");
      await rename(made, path);
    } catch (error) {
      // Another request may have made it meanwhile.
      if ((await stat(path).catch(() => null)) === null) throw error;
    } finally {
      await rm(made, { recursive: true, force: true });
    }
    return path;
  }

  /** Notes that a push begins. */
  async beginPush(path: string): Promise<PushNote> {
    const note = `${path}/${notes}/${randomUUID()}`;
    await mkdir(`${path}/${notes}`, { recursive: true });
    this.#own.add(note);
    await writeFile(note, "");
    const leave = () => void this.#own.delete(note);
    return {
      known: async () => {
        await rm(note, { force: true });
        leave();
      },
      leave,
    };
  }

  /** Repositories with pushes that nobody attends to and whose builds may not have begun. `known` says that they have. */
  async *unfinished(): AsyncGenerator<{
    projectId: string;
    sourceId: string;
    path: string;
    known: () => Promise<void>;
  }> {
    for (const projectId of (await names(this.#directory)).filter((name) => name.startsWith("prj_"))) {
      for (const name of (await names(`${this.#directory}/${projectId}`)).filter((each) => each.endsWith(".git"))) {
        const path = `${this.#directory}/${projectId}/${name}`;
        const all = (await names(`${path}/${notes}`)).map((note) => `${path}/${notes}/${note}`);
        const begun = all.filter((note) => !this.#own.has(note));
        const known = async () => {
          for (const note of begun) await rm(note, { force: true });
        };
        if (begun.length > 0) yield { projectId, sourceId: name.slice(0, -".git".length), path, known };
      }
    }
  }

  /** Removes repositories whose source is gone, and what pushes that were killed left in the others. */
  async tidy(sourcesOf: (projectId: string) => Promise<ReadonlySet<string>>): Promise<void> {
    for (const projectId of (await names(this.#directory)).filter((name) => name.startsWith("prj_"))) {
      const directory = `${this.#directory}/${projectId}`;
      // Read before the sources are asked for: what is made later has its source.
      const repositories = (await names(directory)).filter((name) => name.endsWith(".git"));
      const sources = await sourcesOf(projectId);
      await removeOld(directory, (name) => name.startsWith("."));
      for (const name of repositories) {
        if (!sources.has(name.slice(0, -".git".length)))
          await rm(`${directory}/${name}`, { recursive: true, force: true });
        await removeOld(`${directory}/${name}/objects`, (each) => each.startsWith("tmp_"));
        await removeOld(`${directory}/${name}/objects/pack`, (each) => each.startsWith("tmp_"));
      }
    }
  }

  /** @throws BerthError `body_too_large` when the repository is as large as one may be */
  async checkSize(path: string): Promise<void> {
    let bytes = 0;
    for (const file of await names(`${path}/objects/pack`))
      bytes += (await stat(`${path}/objects/pack/${file}`).catch(() => null))?.size ?? 0;
    if (bytes <= this.#maxBytes) return;
    throw new BerthError(
      "body_too_large",
      `The repository has ${String(bytes)} bytes, and one may have ${String(this.#maxBytes)}. Remove its source and push to a new one.`,
    );
  }

  /** Makes many packs one, and the files of refs too. */
  async compact(path: string): Promise<void> {
    const packs = (await names(`${path}/objects/pack`)).filter((name) => name.endsWith(".pack"));
    if (packs.length > maxPacks) await askGit(path, ["repack", "-a", "-d", "--quiet"]);
    await askGit(path, ["pack-refs", "--all"]);
  }

  /** Does `work` when all that was asked for the repository before is done. */
  inTurn<T>(path: string, work: () => Promise<T>): Promise<T> {
    const before = this.#busy.get(path) ?? Promise.resolve();
    const mine = before.then(work, work);
    const last = mine
      .catch(() => undefined)
      .then(() => {
        if (this.#busy.get(path) === last) this.#busy.delete(path);
      });
    this.#busy.set(path, last);
    return mine;
  }
}

/** Writes this version's hooks; each appears whole, while others may be running. */
async function writeHooks(directory: string): Promise<void> {
  await mkdir(directory, { recursive: true });
  for (const [name, script] of Object.entries(hooks)) {
    const file = `${directory}/.${randomUUID()}`;
    await writeFile(file, script);
    await chmod(file, 0o755);
    await rename(file, `${directory}/${name}`);
  }
}

/** What a directory has; nothing when it is not there. */
const names = (directory: string) => readdir(directory).catch((): string[] => []);

/** Removes what has these names and was not touched for longer than any push takes. */
async function removeOld(directory: string, which: (name: string) => boolean): Promise<void> {
  for (const name of (await names(directory)).filter(which)) {
    const path = `${directory}/${name}`;
    const touched = (await stat(path).catch(() => null))?.mtimeMs ?? Number.POSITIVE_INFINITY;
    if (touched < Date.now() - leftoverMs) await rm(path, { recursive: true, force: true });
  }
}
