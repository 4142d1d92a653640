import { suite } from "../contract/sync.ts"
import { redis } from "./redis.ts"

suite(redis)
