import { RedisPubSubTransport } from "../../src/layers/redis/index.ts"
import { suite } from "../contract/sync.ts"
import { redisPart } from "./redis.ts"

suite(redisPart(RedisPubSubTransport.layer))
