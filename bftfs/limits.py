"""Bounds on what others may send, store and make us do, each with its reason.

Relations between them are asserted at import. Constants that matter to one module stand there.

Sizes are in bytes and times in microseconds unless the name says otherwise.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# --- time -----------------------------------------------------------------------------------
SECOND_US = 1_000_000
CLOCK_SKEW_US = 300 * SECOND_US  # how far a timestamp may lie beyond a correct node's clock
STEPS_AHEAD_US = 64  # …and beyond the time that its object has reached, whatever the clock says
CLOCKS_AGREE_US = 2 * CLOCK_SKEW_US  # in which all correct clocks have come to where one was
CLOCK_JUMP_US = 24 * 3_600 * SECOND_US  # a jump ahead by more makes no history old
CLOCKS_COMPARED_EVERY_US = 60 * SECOND_US  # by nodes: each its own with its peers'
CLOCKS_PATIENCE_US = 100_000  # pause before a time that is ahead is tried again; doubles…
CLOCKS_PATIENCE_MOST_US = 4 * SECOND_US  # …up to this, until all correct clocks have caught up

# --- frames and messages --------------------------------------------------------------------
FRAME_METADATA_BYTES = 4 * MIB  # encoded message; object sync pages and readdir pages fit in
FRAME_BODY_BYTES = 8 * MIB  # raw payload behind it: one fragment of the largest block
UNANSWERED_REQUESTS = 1024  # of one conversation, whose answers it would still take

# --- Q/U ------------------------------------------------------------------------------------
NODES = 64  # n in any configuration; keeps an object history set within one frame
HISTORY_CANDIDATES = 64  # candidates in one replica history; beyond, each client has its share
HISTORY_SHARE = 16  # candidates of one client in a history that is longer than that
HISTORY_CANDIDATES_MOST = 1024  # what is accepted from a peer: a bound on work, not a policy
REPAIRS_PER_SECOND = 200  # barriers and copies that one client may have accepted by one server
REPAIRS_BURST = 400
BARRIERS_EARNED = 16  # barriers of a client at an object at first, and for each update of its own…
BARRIERS_MOST = 64  # …at most so many at once
BARRIERS_OF_OTHERS = 4  # that all others may make there, and one more each second…
BARRIER_UPDATES = 64  # …and for so many updates
CONTENDERS = 64  # clients that stand in the line for an object at one server…
CONTENDED_OBJECTS = 1024  # …objects that have a line, or at which a client minds others…
CONTENDED_US = 4 * SECOND_US  # …and after which who has not tried again has lost his place
SYNC_LINKS = 8192  # versions that one page of object sync can hold
SYNC_KNOWN = 8  # versions that a server names as its own when it asks for a chain
CONDITIONED_BYTES = 1 * MIB  # an operation with the history sets that it is conditioned on
FACTS = 16  # deduced facts that one request can rest on
POSSIBLE_OBJECTS = 32_768  # whose latest candidate a server does not know to be complete…
POSSIBLE_OBJECTS_OF_CLIENT = 8_192  # …because of one client, before its updates wait
OBJECTS_COMPARED = 128  # of which one message asks for the latest timestamps
UNFINISHED_REST_US = SECOND_US  # for one to two of these, what a client has begun is left to it…
UNFINISHED_STAGGER_US = 200_000  # …and then servers repair it one after the other
METHOD_NAME_BYTES = 64
HISTORY_SETS_CACHED = 16_384  # objects whose history sets a client remembers, about 2 KiB each…
HISTORY_SETS_CACHED_BYTES = 32 * MIB  # …and all together, whatever Byzantine servers report
HISTORIES_PARSED_BYTES = 8 * MIB  # of replica histories that are kept parsed: five times as much
OBJECTS_PER_OPERATION = 8  # rename needs four objects and the volume
OPERATION_BYTES = 128 * KIB  # method, credentials and arguments; one extended attribute is 64 KiB
DELTA_ENTRIES = 64  # map entries that one update may change in one object
STATE_KEY_BYTES = 300  # prefix and a name of 255 bytes
STATE_VALUE_BYTES = 64 * KIB + 256
ANSWER_INLINE_BYTES = 512  # smaller answers come whole from every server, larger as digests
ANSWER_BYTES = 1 * MIB  # one page of a directory
SYNC_PAGE_BYTES = 1 * MIB  # one page of an object's state in object sync
VERSIONS_IN_REPLY = 256  # that one page of an object's past lists
PAST_SEARCHED = 1024  # versions that one request may pass over in search of one of the past
GROUPS = 64  # supplementary groups carried with an operation

# --- PASIS ----------------------------------------------------------------------------------
BLOCK_BYTES_MIN = 4 * KIB
BLOCK_BYTES_MAX = 4 * MIB
BLOCK_BYTES_DEFAULT = 128 * KIB
HISTORY_IN_REPLY = 16  # versions that a read reply lists beside the newest
HISTORY_AT_FIRST = 2  # of these, how many a reader asks for before it sees a reason to want more
BLOCKS_PER_TIME_REQUEST = 256  # blocks whose times one request asks for
VALIDATED_VERSIONS = 32_768  # versions that a client remembers as validated: 4 GiB of blocks
LATE_REQUESTS = 512  # unanswered requests of one operation whose late answers still count
LISTINGS_AT_ONCE = 8  # that a reader takes from one node before it turns to the others again
READ_PATIENCE_US = 50_000  # silence after which a reader asks further nodes
WRITE_PATIENCE_US = SECOND_US  # silence after which a write is sent again; a commit may be slow
PATIENCE_MOST_US = 4 * SECOND_US
AVOID_FAULTY_US = 60 * SECOND_US  # for which a node that sent a false fragment is asked last
TIMES_PER_WRITE = 3  # timestamps that a writer tries before it believes that its clock is wrong
POISONOUS_IN_NOTICE = 16  # versions that one notice calls poisonous
POSSIBLE_VERSIONS = 98_304  # unverified versions at one node before writers wait, by default…
POSSIBLE_VERSIONS_OF_CLIENT = 65_536  # …of one client…
POSSIBLE_VERSIONS_OF_BLOCK = 64  # …and of one client and block
VERIFY_IDLE_US = 8_000  # without a client's request, after which a node has idle time; doubles…
VERIFY_IDLE_MOST_US = SECOND_US  # …up to this, where what looks like it ends before the work does
VERIFY_LATE_US = 3_000  # by which a node is woken too late if its machine is busy
VERIFY_FRESH_US = SECOND_US  # a block's rest after a write: it may be overwritten, or under way
VERIFY_STAGGER_US = 100_000  # between the b + 1 nodes that are responsible for a block
VERIFY_ALONE_US = 5 * SECOND_US  # after which the others verify what the responsible have not
VERIFY_PATIENCE_US = 10 * SECOND_US  # for the peers, in one verification
VERIFY_RETRY_US = SECOND_US  # after a verification that settled nothing, doubling…
VERIFY_RETRY_MOST_US = 300 * SECOND_US  # …up to this
VERIFY_AT_ONCE = 8  # blocks
VERIFY_ON_DEMAND = 64  # blocks that are verified before the writes of a client go on
VERIFY_EXCUSED_US = SECOND_US  # beyond the limits, a client adds one version in this time
ABANDONED_US = 2 * CLOCK_SKEW_US  # no correct node takes a version of that age from its author
KEYS_IN_INVENTORY = 1_024  # versions that one reply lists to a node that heals
AUTHORED_INODES = 256  # whose versions one request asks for…
AUTHORED_ROWS = 1_024  # …and how many versions a node looks at for it
OBJECTS_IN_CATALOGUE = 512  # objects, likewise
HEAL_EVERY_US = 600 * SECOND_US  # after which a node compares what it has with its peers again
HEAL_AGAIN_US = 5 * SECOND_US  # after a pass in which something could not be brought
HEAL_PATIENCE_US = 2 * SECOND_US  # for its peers, in one question
HEAL_RATE_BYTES = 32 * MIB  # that a node rebuilds in a second…
HEAL_AT_ONCE = 8  # …and so many versions or objects at a time, 1 while clients are busy
VERSIONS_ATTESTED = 256  # that a node which scrubs asks a peer about at once
LINKS_IN_CHAIN_PAGE = 256  # versions of an object that one page tells of a chain…
CHAIN_PAGE_BYTES = 256 * KIB  # …or so much of them
CHAIN_REBUILT_BYTES = 32 * MIB  # of one object's past that a node takes from its peers
SCRUB_RATE_BYTES = 16 * MIB  # that a node reads and checks in a second…
SCRUB_YIELD_US = 250_000  # …and waits for clients to be idle before each page, so long at most
DETECTION_WINDOW_US = 14 * 24 * 3600 * SECOND_US  # in which nobody can destroy history, by default
DETECTION_WINDOW_MOST_US = 100 * 365 * 24 * 3600 * SECOND_US
COLLECT_EVERY_US = 600 * SECOND_US  # after which a node looks again for what may go…
COLLECT_PRESSED_US = 5 * SECOND_US  # …sooner if it is short of room
COLLECT_ROWS = 256  # versions that are looked at in one step
COLLECT_OBJECTS = 32  # objects, likewise
COLLECT_BLOCKS = 64  # of a file; larger files are always looked through
COLLECT_PAUSE_US = 2_000  # between two steps, longer while clients are busy
COLLECT_YIELD_US = 16 * VERIFY_IDLE_US  # for which a step gives way to them, at most
VERSIONS_SHOWN = 65_536  # states of one file whose blocks are told apart; of more, all are kept
SCRUB_EVERY_US = 7 * 24 * 3600 * SECOND_US  # after which everything stored is read and checked
FILE_BYTES = 1 << 44  # a file ends at 16 TiB
LAYOUT_RANGES = 128  # incarnation ranges of one file; truncation merges beyond that

# --- names ----------------------------------------------------------------------------------
NAME_BYTES = 255
SYMLINK_BYTES = 4095
XATTR_NAME_BYTES = 255
XATTR_VALUE_BYTES = 64 * KIB
XATTRS = 256  # extended attributes of one object
XATTRS_BYTES = 512 * KIB  # their names and values together; a listing passes over them
ACL_ENTRIES = 128  # of one access control list; every permission check may pass over them
LINKS = 65_000

# --- admission at a node --------------------------------------------------------------------
CONNECTIONS = 1024  # accepted connections at one node
PARKED_REQUESTS = 256  # requests waiting for object sync at one node…
PARKED_REQUESTS_OF_ONE = 64  # …and how many of them may be one principal's

assert BLOCK_BYTES_MAX + 4 * KIB <= FRAME_BODY_BYTES
assert ANSWER_BYTES < FRAME_METADATA_BYTES
assert SYNC_PAGE_BYTES + STATE_VALUE_BYTES < FRAME_METADATA_BYTES
assert OPERATION_BYTES >= XATTR_VALUE_BYTES + XATTR_NAME_BYTES + 4 * KIB
