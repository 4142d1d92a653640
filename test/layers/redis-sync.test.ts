import { suite } from "../../src/testing/contracts/sync.ts"
import { redis } from "./redis.ts"

suite(redis)
