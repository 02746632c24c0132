"""Bounds on what others may send, store and make us do, each with its reason.

The assertions at the end state how they depend on each other. A constant that matters to one module
only is in that module. Sizes (…_BYTES) are in bytes, times (…_US) in microseconds.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# --- time -----------------------------------------------------------------------------------
SECOND_US = 1_000_000
CLOCK_SKEW_US = 300 * SECOND_US  # how far a timestamp may lie beyond a correct node's clock
STEPS_AHEAD_US = 64  # …and beyond the time that its object has reached, whatever the clock shows
CLOCKS_AGREE_US = 2 * CLOCK_SKEW_US  # until all correct clocks have reached a time that one shows
CLOCK_JUMP_US = 24 * 3_600 * SECOND_US  # a jump ahead by more makes no history old
SET_BACK_US = 3_600 * SECOND_US  # how long nodes accept times of before it was set back
CLOCKS_COMPARED_EVERY_US = 60 * SECOND_US  # by nodes: each its own with its peers'
DECISIONS_TOLD = 16  # of those to let history go, by a node that is asked for its health
LET_GO_SETTLED_US = CLOCK_SKEW_US  # until no client can date changes to a moment any more
LET_GO_AFTER_US = CLOCKS_AGREE_US  # from the history that is let go to the decision
# A server accepts times by its own clock. They may be later, by this much, than the times that the
# servers which have confirmed its clock tell it.
BORNE_BEYOND_US = 2 * CLOCKS_AGREE_US + 2 * CLOCKS_COMPARED_EVERY_US
AHEAD_NAMED = 16  # of the objects that are of the future, in a node's report
CLOCKS_PATIENCE_US = 100_000  # pause before a time that is ahead is tried again; doubles…
CLOCKS_PATIENCE_MOST_US = 4 * SECOND_US  # …up to this, until all correct clocks have caught up

# --- frames and messages --------------------------------------------------------------------
FRAME_METADATA_BYTES = 4 * MIB  # encoded message; object sync pages and readdir pages fit in
OTHER_DESCRIPTIONS = 4  # that a node keeps beside the latest one
DESCRIPTION_BYTES = 3 * MIB  # of a cluster description, which travels in one message
FRAME_BODY_BYTES = 8 * MIB  # raw payload that follows it: one fragment of the largest block
UNANSWERED_REQUESTS = 1024  # of one conversation; answers to older ones are dropped

# --- Q/U ------------------------------------------------------------------------------------
NODES = 64  # n in any configuration; keeps an object history set within one frame
HISTORY_CANDIDATES = 64  # candidates in one replica history, before clients are limited…
HISTORY_SHARE = 16  # …to this many of each in a longer history
HISTORY_CANDIDATES_MOST = 1024  # in a history that is received: this only bounds the work
REPAIRS_PER_SECOND = 200  # barriers and copies that a server accepts from one client…
REPAIRS_BURST = 400  # …and how many at once
BARRIERS_EARNED = 16  # barriers at an object that a client has at first and earns per update…
BARRIERS_MOST = 64  # …and the most that it can save up
BARRIERS_OF_OTHERS = 4  # barriers there of all other clients together, plus one each second…
BARRIER_UPDATES = 64  # …and one per this many updates there
BARRIER_BACK_US = 60 * SECOND_US  # one comes back so often, where a client is forgotten
BARRIER_STEP_US = 30 * SECOND_US  # a client puts an object's time ahead of a clock in such steps…
BARRIER_STEPS = 10  # …as many as this at first, and after each of its updates there…
BARRIER_STEP_EVERY_US = 3_600 * SECOND_US  # …and one more each time this has passed
OBJECTS_BARRED_OF_CLIENT = 128  # whose barriers and steps a server remembers
CONTENDERS = 64  # clients in the line for an object at one server…
CONTENDED_OBJECTS = 1024  # …objects with a line at a server, or with contention at a client…
CONTENDED_US = 4 * SECOND_US  # …and how long a client keeps its place without trying again
SYNC_LINKS = 8192  # versions that one page of object sync can hold
SYNC_KNOWN = 8  # versions that a server names as its own when it asks for a chain
CONDITIONED_BYTES = 1 * MIB  # an operation with the history sets that it is conditioned on
FACTS = 16  # deduced facts that one request can rest on
POSSIBLE_OBJECTS = 32_768  # objects with incomplete updates that a server remembers…
POSSIBLE_OBJECTS_OF_CLIENT = 8_192  # …and those of one client, before its updates wait
OBJECTS_COMPARED = 128  # objects whose latest timestamps one message asks for
INCOMPLETE_REST_US = SECOND_US  # a new update is left to its client for one to two of these…
INCOMPLETE_STAGGER_US = 200_000  # …and then servers try to repair it, at this distance
METHOD_NAME_BYTES = 64
HISTORY_SETS_CACHED = 16_384  # objects whose history sets a client remembers, about 2 KiB each…
HISTORY_SETS_CACHED_BYTES = 32 * MIB  # …and all together, whatever Byzantine servers report
HISTORIES_PARSED_BYTES = 8 * MIB  # of encoded histories that are cached in five times the memory
OBJECTS_PER_OPERATION = 8  # rename needs four objects and the volume
OPERATION_BYTES = 128 * KIB  # method, credentials and arguments; one extended attribute is 64 KiB
DELTA_ENTRIES = 1_024  # map entries that one update may change in one object
STATE_KEY_BYTES = 300  # prefix and a name of 255 bytes
STATE_VALUE_BYTES = 64 * KIB + 256
ANSWER_INLINE_BYTES = 512  # smaller answers come whole from every server, larger as digests
ANSWER_BYTES = 1 * MIB  # of a query or an update
LISTING_BYTES = 128 * KIB  # of a directory, in one answer: it takes a node 3 ms, as few others do
QUERIES_BUNDLED = 128  # objects that one message asks, each by a query of its own…
BUNDLE_BYTES = 256 * KIB  # …and bytes of histories and answers after which a server stops
SYNC_PAGE_BYTES = 1 * MIB  # one page of an object's state in object sync
VERSIONS_IN_REPLY = 256  # versions in one page of an object's past
PAST_SEARCHED = 1024  # versions that one request for the past may search
GROUPS = 64  # supplementary groups carried with an operation

# --- PASIS ----------------------------------------------------------------------------------
BLOCK_BYTES_MIN = 4 * KIB
BLOCK_BYTES_MAX = 4 * MIB
BLOCK_BYTES_DEFAULT = 128 * KIB
HISTORY_IN_REPLY = 16  # versions that a read reply lists, besides the newest
HISTORY_AT_FIRST = 2  # how many of these a reader asks for at first
BLOCKS_PER_TIME_REQUEST = 256  # blocks whose times one request asks for
VALIDATED_VERSIONS = 32_768  # that a client remembers as validated: 4 GiB of blocks
LATE_REQUESTS = 512  # requests of one operation whose late answers still count
LISTINGS_AT_ONCE = 8  # listings in a row that a reader takes from one node
READ_PATIENCE_US = 50_000  # silence after which a reader asks further nodes
WRITE_PATIENCE_US = SECOND_US  # silence after which a write is sent again; a commit may be slow
PATIENCE_MOST_US = 4 * SECOND_US  # the longest silence before a reader asks again
AVOID_FAULTY_US = 60 * SECOND_US  # how long a node that sent a false fragment is asked last
TIMES_PER_WRITE = 3  # refused timestamps after which a writer believes that its clock is wrong
POISONOUS_IN_NOTICE = 16  # versions that one notice calls poisonous
POSSIBLE_VERSIONS = 98_304  # unverified versions at one node before writers wait, by default…
POSSIBLE_VERSIONS_OF_CLIENT = 65_536  # …of one client…
POSSIBLE_VERSIONS_OF_BLOCK = 64  # …and of one client and block
VERIFY_IDLE_US = 8_000  # without requests of clients, after which a node is idle; doubles…
VERIFY_IDLE_MOST_US = SECOND_US  # …up to this, if requests come during the work
VERIFY_LATE_US = 3_000  # a pause that is this much too long shows that the machine is busy
VERIFY_FRESH_US = SECOND_US  # after a write; other nodes may lack it yet, or it is overwritten
VERIFY_STAGGER_US = 100_000  # between the starts of the nodes responsible for a block
VERIFY_ALONE_US = 5 * SECOND_US  # after which the other nodes verify it themselves
VERIFY_PATIENCE_US = 10 * SECOND_US  # how long one verification waits for peers
VERIFY_RETRY_US = SECOND_US  # pause after a verification that settled nothing; doubles…
VERIFY_RETRY_MOST_US = 300 * SECOND_US  # …up to this
VERIFY_AT_ONCE = 8  # blocks verified at the same time
VERIFY_BESIDE_SHARE = 0.25  # of a node's time, beside clients, where its backlog is half full…
VERIFY_BESIDE_LEAST = 0.01  # …and in proportion below; where it is less, it is not worth while
VERIFY_SLOPE_FROM = 0.5  # of a limit, from which writers wait for ever more verifications
VERIFY_ON_DEMAND = 64  # blocks verified for a client whose writes wait
VERIFY_EXCUSED_US = SECOND_US  # beyond its limit, a client may add one version in this time
ABANDONED_US = 2 * CLOCK_SKEW_US  # age at which no correct node takes a version from its author
KEYS_IN_INVENTORY = 1_024  # versions that one reply lists to a healing node
FRAGMENTS_IN_REPLY = 128  # of as many versions, which one reply brings to a healing node…
FRAGMENTS_BYTES = 2 * MIB  # …and the bytes after which it brings no more
AUTHORED_INODES = 256  # inodes whose block versions one request asks for…
AUTHORED_ROWS = 1_024  # …and versions that a node looks at for one request
OBJECTS_IN_CATALOGUE = 512  # objects that one reply lists to a healing server
HEAL_EVERY_US = 600 * SECOND_US  # pause between two comparisons with the peers
HEAL_AGAIN_US = 5 * SECOND_US  # pause after a pass that left something to be done
HEAL_PATIENCE_US = 2 * SECOND_US  # how long a worker waits for the answers of peers…
HEAL_SILENT_US = SECOND_US // 4  # …if all that have not answered were silent before
CLAIM_PATIENCE_US = SECOND_US // 2  # how long a server asks another which life it lives…
CLAIM_AGAIN_US = SECOND_US  # …and does not ask again if it did not answer
RUN_EVERY_US = 600 * SECOND_US  # how long a run of a node lasts (bftfs/server/runs.py)
RUN_AGAIN_US = SECOND_US // 4  # pause after an attempt to begin one that failed
HEAL_RATE_BYTES = 128 * MIB  # rebuilt per second at most…
BELIEVED_OF_SERVER = 16  # candidates of one history of which peers are asked what they know
HEAL_AT_ONCE = 8  # …this many objects at a time; 1 while clients are busy
HEAL_BUSY_BYTES = 64 * KIB  # of versions rebuilt at a time while clients are busy…
HEAL_STEP_BYTES = 512 * KIB  # …and made and stored at a time while they are not
VERSIONS_ATTESTED = 256  # versions that one request of scrubbing asks a peer about
LINKS_IN_CHAIN_PAGE = 256  # versions in one page of an object's chain…
CHAIN_PAGE_BYTES = 256 * KIB  # …and their bytes
CHAIN_REBUILT_BYTES = 32 * MIB  # of an object's past that a server fetches from its peers
SCRUB_RATE_BYTES = 16 * MIB  # read and checked per second at most…
SCRUB_YIELD_US = 250_000  # …and how long each page waits for clients to be idle
DETECTION_WINDOW_US = 14 * 24 * 3600 * SECOND_US  # default; younger history cannot be destroyed
DETECTION_WINDOW_MOST_US = 100 * 365 * 24 * 3600 * SECOND_US
COLLECT_EVERY_US = 600 * SECOND_US  # pause between two passes of collection…
COLLECT_PRESSED_US = 5 * SECOND_US  # …while the node is short of room
COLLECT_LET_GO_US = 60 * SECOND_US  # …and at most while there is something that was let go
COLLECT_ROWS = 256  # versions that are looked at in one step
COLLECT_OBJECTS = 32  # objects that are looked at in one step
COLLECT_BLOCKS = 64  # files with more blocks are always searched for old versions
COLLECT_PAUSE_US = 2_000  # pause between two steps, longer while clients are busy…
COLLECT_YIELD_US = 16 * VERIFY_IDLE_US  # …by this much at most
USAGE_ROWS = 128  # versions that are looked at in one step to tell what is stored
USAGE_BOUNDS = 8  # times by which the past is divided then
VERSIONS_SHOWN = 65_536  # versions of one file; if it has more, all of its blocks are kept
SCRUB_EVERY_US = 7 * 24 * 3600 * SECOND_US  # pause between two passes of scrubbing
VOUCHED_VERSIONS = 256  # written and not covered yet, whose vouchers a client keeps…
VOUCHED_FOR_US = 60 * SECOND_US  # …and uses for so long without asking if nodes have them still
BLOCKS_PER_COVER = 1_000  # that one update of an inode names
PATCHES = 8  # that lie on one block; beyond that, it is written whole
PATCHES_PER_COVER = 128  # that one update of an inode names
PATCH_EXTENTS = 32  # ranges of bytes in one patch
COVERED_WITHIN_US = 24 * 3600 * SECOND_US  # a version that is older is not named any more
FILE_BYTES = 1 << 44  # a file ends at 16 TiB
LAYOUT_RANGES = 128  # incarnation ranges of one file; beyond that, truncation merges two

# --- names ----------------------------------------------------------------------------------
NAME_BYTES = 255
SYMLINK_BYTES = 4095
XATTR_NAME_BYTES = 255
XATTR_VALUE_BYTES = 64 * KIB
XATTRS = 256  # extended attributes of one object
XATTRS_BYTES = 512 * KIB  # names and values of one object; each listing scans them
ACL_ENTRIES = 128  # of one access control list; a permission check may scan them
LINKS = 65_000

# --- admission at a node --------------------------------------------------------------------
CONNECTIONS = 1024  # accepted connections at one node
PARKED_BYTES = 32 * MIB  # of requests waiting for what a node gets from its peers…
PARKED_REQUEST_BYTES = 128 * KIB  # …where each counts as so much and its own bytes…
PARKED_BYTES_SURE = 1 * MIB  # …and each principal may have so much, whatever others have

assert BARRIER_STEPS * BARRIER_STEP_US >= CLOCK_SKEW_US  # what one client may have left, at once
assert BLOCK_BYTES_MAX + 4 * KIB <= FRAME_BODY_BYTES
assert FRAGMENTS_BYTES + BLOCK_BYTES_MAX <= FRAME_BODY_BYTES  # with the last one
assert LISTING_BYTES <= ANSWER_BYTES < FRAME_METADATA_BYTES
assert QUERIES_BUNDLED <= 256  # a position takes one byte
assert SYNC_PAGE_BYTES + STATE_VALUE_BYTES < FRAME_METADATA_BYTES
assert BLOCKS_PER_COVER < DELTA_ENTRIES
assert VOUCHED_FOR_US < CLOCK_SKEW_US  # by which any window of a node is longer
assert COVERED_WITHIN_US < DETECTION_WINDOW_US  # until then nobody's later versions displace it
assert PATCHES_PER_COVER <= BLOCKS_PER_COVER  # which bounds both together
assert 80 * BLOCKS_PER_COVER < OPERATION_BYTES  # as they are encoded, with numbers, times, bases
assert OPERATION_BYTES >= XATTR_VALUE_BYTES + XATTR_NAME_BYTES + 4 * KIB
