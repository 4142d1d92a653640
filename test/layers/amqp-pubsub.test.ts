import { AmqpPubSubTransport } from "../../src/layers/amqp/index.ts"
import { suite } from "../../src/testing/contracts/pubsub.ts"
import { amqpPart } from "./amqp.ts"

suite(amqpPart(AmqpPubSubTransport.layer, { delays: false }))
