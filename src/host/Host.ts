/**
 * Runs instances of the host application: the three plugins and an HTTP API.
 */
import { createServer } from "node:http"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpApiSwagger from "effect/http-api/HttpApiSwagger"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import type * as Cohort from "../layers/Cohort.ts"
import { TaskStore, Tasks } from "../plugins/async-task-manager/index.ts"
import { Auth, AuthStore } from "../plugins/auth/index.ts"
import {
  CollectionStore,
  Collections,
  type CsvFiles,
  plugin as dataSourceMain
} from "../plugins/data-source-main/index.ts"
import * as PluginHost from "../services/PluginHost.ts"
import { Api } from "./Api.ts"
import * as Handlers from "./handlers.ts"

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

/**
 * Starts an instance, and stops it with the scope: first the HTTP server, then the
 * plugins (which drain), then the services below.
 */
export const start = <E>(options: {
  readonly id: string
  /** 0 takes a free one. */
  readonly port: number
  readonly services: Layer.Layer<Cohort.Services | Stores, E>
}) =>
  Effect.gen(function* () {
    const routes = Layer.mergeAll(
      HttpApiBuilder.layer(Api, { openapiPath: "/openapi.json" }).pipe(
        Layer.provide(Handlers.layer),
        Layer.provide(HttpApiMiddleware.layerProblemDetails({ includeDetails: true }))
      ),
      HttpApiSwagger.layer(Api, { path: "/docs" })
    )
    const domain = Layer.mergeAll(Auth.layer, Tasks.layer, Collections.layer)
    const layer = HttpRouter.serve(routes, { disableLogger: true, disableListenLog: true }).pipe(
      Layer.provideMerge(
        NodeHttpServer.layer(createServer, {
          port: options.port,
          host: "127.0.0.1",
          gracefulShutdownTimeout: "5 seconds"
        })
      ),
      Layer.provide(PluginHost.layer([Tasks.plugin, Auth.plugin, dataSourceMain])),
      Layer.provide(domain),
      Layer.provide(options.services)
    )
    // A memo map of its own: no instance shares a service with another.
    const context = yield* Layer.buildWithMemoMap(layer, yield* Layer.makeMemoMap, yield* Scope.Scope)
    const { address } = yield* Effect.provide(HttpServer.HttpServer, context)
    const port = "port" in address ? address.port : options.port
    return { id: options.id, url: `http://127.0.0.1:${port}` } satisfies RunningInstance
  }).pipe(Effect.annotateLogs({ instance: options.id }))
