/**
 * What stands behind the instances: servers for the primitives, by backend, and one for what the plugins keep. That
 * is the database that `DATABASE_URL` names; otherwise Redis, or the memory of instances that share a process.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { Backends, Services } from "../layers/Cohort.ts"
import type { TaskStore } from "../plugins/async-task-manager/index.ts"
import type { AuthStore } from "../plugins/auth/index.ts"
import type { CollectionStore } from "../plugins/data-source-main/index.ts"
import type * as PrivateServer from "./PrivateServer.ts"
import { ofConfig, Refused } from "./Refused.ts"
import type * as Server from "./Server.ts"
import * as Database from "./sql/settings.ts"

const redis = Effect.promise(() => import("./redis/index.ts"))
const sql = Effect.promise(() => import("./sql/index.ts"))
const amqp = Effect.promise(() => import("./amqp/index.ts"))

const variables = {
  cache: "COHORT_CACHE",
  lock: "COHORT_LOCK",
  queue: "COHORT_QUEUE",
  pubsub: "COHORT_PUBSUB"
} as const
const primitives = Object.keys(variables) as ReadonlyArray<keyof Backends>

const isDatabaseNamed: Effect.Effect<boolean, Refused> = Effect.mapBoth(Database.config, {
  onSuccess: ({ url }) => url !== undefined,
  onFailure: ofConfig
})

/** Where what the plugins keep is, in words. */
export const dataIn = (elsewhere: string): Effect.Effect<string, Refused> =>
  Effect.map(isDatabaseNamed, (isNamed) => `data in ${isNamed ? "PostgreSQL" : elsewhere}`)

/** The database, if one is named. */
export const database = Effect.flatMap(isDatabaseNamed, (isNamed) =>
  isNamed ? Effect.map(sql, ({ server }) => [server]) : Effect.succeed([])
)

/** The servers that are needed. */
export const servers = (backends: Backends): Effect.Effect<ReadonlyArray<Server.Kind>, Refused> =>
  Effect.gen(function* () {
    const kinds = new Set<Server.Kind>()
    for (const primitive of primitives) {
      const backend = backends[primitive]
      if (backend === "memory") {
        return yield* new Refused({ detail: `${variables[primitive]}: memory is not shared by processes` })
      }
      kinds.add((yield* backend === "redis" ? redis : amqp).server)
    }
    return [...kinds.add((yield* (yield* isDatabaseNamed) ? sql : redis).server)]
  })

/** What tells a process of the cluster its backends. */
export const environment = (backends: Backends): PrivateServer.Environment =>
  Object.fromEntries(primitives.map((primitive) => [variables[primitive], backends[primitive]]))

type Stores = AuthStore.AuthStore | TaskStore.TaskStore | CollectionStore.CollectionStore

/** The primitives, with the plugins' stores of an instance; those that it shares with others in this process, if any. */
export const withStores = (
  cohort: Layer.Layer<Services, unknown>,
  shared?: Layer.Layer<Stores>
): Layer.Layer<Services | Stores, unknown> =>
  Layer.unwrap(
    Effect.gen(function* () {
      if (yield* isDatabaseNamed) return (yield* sql).withStores(cohort) as Layer.Layer<Services | Stores, unknown>
      return Layer.provideMerge(shared ?? (yield* redis).layerStoresConfig, cohort)
    })
  )
