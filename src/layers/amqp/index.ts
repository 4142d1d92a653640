/**
 * The RabbitMQ layers. Importing them loads amqplib.
 *
 * @since 0.2.0
 */
import * as Layer from "effect/Layer"
import * as AmqpCacheStore from "./AmqpCacheStore.ts"
import * as AmqpConnection from "./AmqpConnection.ts"
import * as AmqpEventQueueStore from "./AmqpEventQueueStore.ts"
import * as AmqpLockStore from "./AmqpLockStore.ts"
import * as AmqpOptions from "./AmqpOptions.ts"
import * as AmqpPubSubTransport from "./AmqpPubSubTransport.ts"
import * as ReplicatedLog from "./log/ReplicatedLog.ts"

export {
  AmqpCacheStore,
  AmqpConnection,
  AmqpEventQueueStore,
  AmqpLockStore,
  AmqpOptions,
  AmqpPubSubTransport,
  ReplicatedLog
}

/**
 * All four stores, on one connection and one replicated log.
 *
 * @since 0.2.0
 */
export const layerStores = Layer.mergeAll(
  AmqpCacheStore.layer,
  AmqpEventQueueStore.layer,
  AmqpLockStore.layer,
  AmqpPubSubTransport.layer
)
