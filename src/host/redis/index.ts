/** The plugins' stores on Redis, shared by the processes of an app. */
import * as Layer from "effect/Layer"
import * as RedisAuthStore from "./RedisAuthStore.ts"
import * as RedisCollectionStore from "./RedisCollectionStore.ts"
import * as RedisTaskStore from "./RedisTaskStore.ts"

export const layerStores = Layer.mergeAll(RedisAuthStore.layer, RedisTaskStore.layer, RedisCollectionStore.layer)
