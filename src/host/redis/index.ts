/** Redis, for the host: the server, and the plugins' stores on it, shared by the processes of an app. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as RedisConnection from "../../layers/redis/RedisConnection.ts"
import * as RedisOptions from "../../layers/redis/RedisOptions.ts"
import * as RedisAuthStore from "./RedisAuthStore.ts"
import * as RedisCollectionStore from "./RedisCollectionStore.ts"
import * as RedisTaskStore from "./RedisTaskStore.ts"

export { server } from "./settings.ts"

export const layerStores = Layer.mergeAll(RedisAuthStore.layer, RedisTaskStore.layer, RedisCollectionStore.layer)

/** On a connection of their own, as the environment says. */
export const layerStoresConfig = Layer.provide(
  layerStores,
  Layer.effect(
    RedisConnection.RedisConnection,
    Effect.flatMap(RedisOptions.config, (options) => RedisConnection.make({ ...options, name: "data" }))
  )
)
