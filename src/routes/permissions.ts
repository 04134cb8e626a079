import type { Role } from "../core/roles.ts";

/**
 * Who may do what: the least role of each operation. `public` needs no token. An operation that is not here can't be
 * registered, and a test walks every operation of openapi.yaml with every role.
 */
export const permissions = {
  createBuild: "deployer",
  listBuilds: "viewer",
  getBuild: "viewer",
  getBuildLogs: "viewer",
  cancelBuild: "deployer",
  pruneBuilds: "deployer",

  createSource: "deployer",
  listSources: "viewer",
  getSource: "viewer",
  updateSource: "deployer",
  deleteSource: "deployer",
  rotateSourceSecret: "deployer",
  listDeliveries: "viewer",
  getDelivery: "viewer",
  redeliverDelivery: "deployer",
  buildSource: "deployer",
  receiveWebhook: "public",

  listImages: "viewer",
  getImage: "viewer",
  pullImage: "deployer",
  pushImage: "deployer",
  tagImage: "deployer",
  deleteImage: "deployer",
  saveImages: "viewer",
  loadImages: "deployer",

  createContainer: "deployer",
  listContainers: "viewer",
  getContainer: "viewer",
  updateContainer: "deployer",
  deleteContainer: "deployer",
  startContainer: "deployer",
  stopContainer: "deployer",
  restartContainer: "deployer",
  killContainer: "deployer",
  pauseContainer: "deployer",
  unpauseContainer: "deployer",
  waitContainer: "viewer",
  getContainerLogs: "viewer",
  execContainer: "deployer",
  getContainerFiles: "deployer",
  putContainerFiles: "deployer",
  getContainerStats: "viewer",
  listContainerProcesses: "deployer",
  listContainerChanges: "deployer",

  createPort: "deployer",
  listPorts: "viewer",
  getPort: "viewer",
  deletePort: "deployer",

  listDeployments: "viewer",
  getDeployment: "viewer",

  listJobs: "viewer",
  getJob: "viewer",
  cancelJob: "deployer",

  listEvents: "viewer",

  createProject: "operator",
  listProjects: "viewer",
  getProject: "viewer",
  getQuota: "viewer",
  updateQuota: "operator",
  getUsage: "viewer",
  createToken: "admin",
  listTokens: "admin",
  revokeToken: "admin",

  listHosts: "operator",
  getHost: "operator",
  drainHost: "operator",
  activateHost: "operator",
  forgetHost: "operator",
  createJoinToken: "operator",
  listJoinTokens: "operator",
  revokeJoinToken: "operator",

  getHealth: "public",
  getReadiness: "public",
  getMetrics: "public",
  getOpenApi: "public",
  getDocs: "public",
} as const satisfies Record<string, Role | "public">;

export type OperationId = keyof typeof permissions;
