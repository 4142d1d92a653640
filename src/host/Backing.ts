/**
 * What stands behind the processes of a cluster: servers for the primitives, by
 * backend, and one for what the plugins keep, which is Redis, whatever the backend.
 */
import * as Effect from "effect/Effect"
import type { Backends } from "../layers/Cohort.ts"
import type * as PrivateServer from "./PrivateServer.ts"
import { Refused } from "./Refused.ts"
import type * as Server from "./Server.ts"

const redis = Effect.promise(() => import("./redis/index.ts"))
const amqp = Effect.promise(() => import("./amqp/index.ts"))

const variables = {
  cache: "COHORT_CACHE",
  lock: "COHORT_LOCK",
  queue: "COHORT_QUEUE",
  pubsub: "COHORT_PUBSUB"
} as const
const primitives = Object.keys(variables) as ReadonlyArray<keyof Backends>

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
    return [...kinds.add((yield* redis).server)]
  })

/** What tells a process of the cluster its backends. */
export const environment = (backends: Backends): PrivateServer.Environment =>
  Object.fromEntries(primitives.map((primitive) => [variables[primitive], backends[primitive]]))

/** The plugins' stores, for a process of the cluster. */
export const stores = Effect.map(redis, ({ layerStoresConfig }) => layerStoresConfig)
