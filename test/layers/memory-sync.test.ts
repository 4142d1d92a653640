import { suite } from "../../src/testing/contracts/sync.ts"
import { memory } from "./memory.ts"

suite(memory)
