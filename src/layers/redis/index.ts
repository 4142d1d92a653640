/**
 * The Redis layers. Importing them loads ioredis.
 *
 * @since 0.2.0
 */
import * as Layer from "effect/Layer"
import * as RedisCacheStore from "./RedisCacheStore.ts"
import * as RedisConnection from "./RedisConnection.ts"
import * as RedisEventQueueStore from "./RedisEventQueueStore.ts"
import * as RedisLockStore from "./RedisLockStore.ts"
import * as RedisOptions from "./RedisOptions.ts"
import * as RedisPersistence from "./RedisPersistence.ts"
import * as RedisPubSubTransport from "./RedisPubSubTransport.ts"

export {
  RedisCacheStore,
  RedisConnection,
  RedisEventQueueStore,
  RedisLockStore,
  RedisOptions,
  RedisPersistence,
  RedisPubSubTransport
}

/**
 * All four stores, on one connection.
 *
 * @since 0.2.0
 */
export const layerStores = Layer.mergeAll(
  RedisCacheStore.layer,
  RedisEventQueueStore.layer,
  RedisLockStore.layer,
  RedisPubSubTransport.layer
)
