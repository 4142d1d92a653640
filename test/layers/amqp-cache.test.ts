import * as Layer from "effect/Layer"
import * as AmqpCacheStore from "../../src/layers/amqp/AmqpCacheStore.ts"
import * as AmqpLockStore from "../../src/layers/amqp/AmqpLockStore.ts"
import { AmqpPubSubTransport } from "../../src/layers/amqp/index.ts"
import * as Log from "../../src/layers/amqp/log/ReplicatedLog.ts"
import { suite } from "../../src/testing/contracts/cache.ts"
import { amqpPart } from "./amqp.ts"

/** Exclusive loads take locks, and near caches tell each other. */
const stores = (options: AmqpCacheStore.Options) =>
  Layer.mergeAll(
    Layer.provide(Layer.mergeAll(AmqpCacheStore.layerOnLog(options), AmqpLockStore.layerOnLog()), Log.layer),
    AmqpPubSubTransport.layer
  )

suite(amqpPart(stores({}), { delays: false, features: { readsFollowWrites: false } }))
suite(amqpPart(stores({ reads: "latest" }), { delays: false, name: "rabbitmq, with latest reads" }))
