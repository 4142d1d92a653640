/**
 * Runs instances of the host application: the three plugins and an HTTP API.
 */
import { createServer } from "node:http"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import { ServeError } from "effect/http/HttpServerError"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpApiSwagger from "effect/http-api/HttpApiSwagger"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Cohort from "../layers/Cohort.ts"
import { TaskStore, Tasks } from "../plugins/async-task-manager/index.ts"
import { Auth, AuthStore } from "../plugins/auth/index.ts"
import {
  CollectionStore,
  Collections,
  type CsvFiles,
  plugin as dataSourceMain
} from "../plugins/data-source-main/index.ts"
import * as Health from "../services/Health.ts"
import * as Setting from "../services/internal/setting.ts"
import * as Membership from "../services/Membership.ts"
import * as PluginHost from "../services/PluginHost.ts"
import * as QueueAlarms from "../services/QueueAlarms.ts"
import * as WorkerMode from "../services/WorkerMode.ts"
import { Api } from "./Api.ts"
import * as Handlers from "./handlers.ts"
import * as Accounts from "./page/Accounts.ts"
import * as Page from "./page/Page.ts"
import * as RecentLog from "./page/RecentLog.ts"
import { describe, Refused } from "./Refused.ts"
import * as Probes from "./Probes.ts"
import * as Telemetry from "./Telemetry.ts"

/** What the plugins keep: the same for all instances. */
export type Stores = AuthStore.AuthStore | TaskStore.TaskStore | CollectionStore.CollectionStore | CsvFiles.CsvFiles

/** The plugins' stores in the memory of this process, shared by the instances in it. */
export const storesMemory = Layer.mergeAll(AuthStore.layerMemory, TaskStore.layerMemory, CollectionStore.layerMemory)

/** One running instance. */
export interface RunningInstance {
  readonly id: string
  /** Where its API answers. */
  readonly url: string
}

/** What an instance reads by itself. */
export const settings = {
  host: Setting.text(
    "COHORT_HOST",
    "`127.0.0.1`: this machine only",
    "Address that instances listen on; `0.0.0.0` is every IPv4 one, in a container for instance"
  ),
  drainDelay: Setting.duration(
    "COHORT_DRAIN_DELAY",
    "none",
    "How long an instance that is told to stop is not ready, and still serves, before it does"
  ),
  ...Page.settings,
  ...Telemetry.settings
}

/** How long an instance may take to end, beyond what the settings give it: for requests, and for what is slow to close. */
const closing = Duration.seconds(15)

/** How long an instance that is told to stop may take: it serves on for a while, lets its jobs end, and closes. */
export const stopWithin: Config.Config<Duration.Duration> = Config.map(
  Setting.all({ drainDelay: settings.drainDelay, shutdownTimeout: Cohort.defaultSettings.shutdownTimeout }),
  ({ drainDelay = Duration.zero, shutdownTimeout = Duration.seconds(30) }) =>
    Duration.sum(Duration.sum(drainDelay, shutdownTimeout), closing)
)

/**
 * Starts an instance, and stops it with the scope: it is not ready any more, then the HTTP server ends, then the
 * plugins (which drain), then the services below. One whose worker mode serves no requests has probes only.
 */
export const start = <E>(options: {
  readonly app: string
  readonly id: string
  /** 0 takes a free one. */
  readonly port: number
  readonly services: Layer.Layer<Cohort.Services | Stores, E>
}) =>
  Effect.gen(function* () {
    const {
      drainDelay = Duration.zero,
      host = "127.0.0.1",
      token,
      version = "0"
    } = yield* Setting.all({
      drainDelay: settings.drainDelay,
      host: settings.host,
      token: settings.token,
      version: Cohort.instanceSettings.version
    })
    const api = Layer.mergeAll(
      HttpApiBuilder.layer(Api, { openapiPath: "/openapi.json" }).pipe(
        Layer.provide(Handlers.layer),
        Layer.provide(HttpApiMiddleware.layerProblemDetails({ includeDetails: true }))
      ),
      HttpApiSwagger.layer(Api, { path: "/docs" }),
      Page.layer(token)
    )
    const routes = Layer.unwrap(
      Effect.map(WorkerMode.servingRequests, (requests) => (requests ? Layer.merge(Probes.layer, api) : Probes.layer))
    )
    const base = Layer.mergeAll(
      Health.layer,
      RecentLog.layer,
      Telemetry.layer({ app: options.app, id: options.id, version })
    )
    const domain = Layer.mergeAll(Auth.layer, Tasks.layer, Collections.layer)
    const layer = HttpRouter.serve(routes, { disableLogger: true, disableListenLog: true }).pipe(
      Layer.provideMerge(
        NodeHttpServer.layer(createServer, {
          port: options.port,
          host,
          gracefulShutdownTimeout: "5 seconds"
        })
      ),
      Layer.provide(PluginHost.layer([Tasks.plugin, Auth.plugin, dataSourceMain])),
      Layer.provide(domain),
      // Also of an instance without a page: it answers for itself.
      Layer.provide(Accounts.layer),
      Layer.provide(QueueAlarms.layer),
      // Who dies is missed within seconds.
      Layer.provide(Membership.layerWith({ interval: "2 seconds" })),
      Layer.provide(options.services),
      Layer.provideMerge(base)
    )
    // A memo map of its own: no instance shares a service with another.
    const context = yield* Effect.mapError(
      Layer.buildWithMemoMap(layer, yield* Layer.makeMemoMap, yield* Scope.Scope),
      (error) => (error instanceof ServeError ? cannotListen(host, options.port, error.cause) : error)
    )
    const { address } = yield* Effect.provide(HttpServer.HttpServer, context)
    const port = "port" in address ? address.port : options.port
    const health = Context.get(context, Health.Health)
    yield* health.started
    yield* Effect.addFinalizer(() => Effect.andThen(health.stopping, Effect.sleep(drainDelay)))
    return { id: options.id, url: urlOf(host, port) } satisfies RunningInstance
  }).pipe(Effect.annotateLogs({ instance: options.id }))

const cannotListen = (host: string, port: number, cause: unknown): Refused => {
  const code = cause instanceof Error && "code" in cause ? cause.code : undefined
  if (code === "EADDRINUSE" || code === "EACCES") {
    const why = code === "EADDRINUSE" ? "is taken" : "is not open to this user"
    return new Refused({ detail: `port ${port} of ${host} ${why}: --port (or COHORT_PORT) takes another, 0 free ones` })
  }
  return new Refused({ detail: `COHORT_HOST: ${describe(cause)}` })
}

/** Where an instance answers: one that listens on every address does on this machine's own. */
const urlOf = (host: string, port: number): string => {
  if (host === "0.0.0.0") return `http://127.0.0.1:${port}`
  return `http://${host === "::" ? "[::1]" : host.includes(":") ? `[${host}]` : host}:${port}`
}
