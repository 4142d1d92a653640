import { AmqpEventQueueStore } from "../../src/layers/amqp/index.ts"
import { suite } from "../../src/testing/contracts/queue.ts"
import { amqpPart } from "./amqp.ts"

// Ten tests at a time share the broker, and it two cores: what it does takes as long as it takes.
suite(amqpPart(AmqpEventQueueStore.layer, { lateness: 5_000 }), { propertyRuns: 15 })
