import { RedisPubSubTransport } from "../../src/layers/redis/index.ts"
import { suite } from "../contract/pubsub.ts"
import { redisPart } from "./redis.ts"

suite(redisPart(RedisPubSubTransport.layer))
