// What follows from a convolution's sizes once the product has said how many sums a thread has (NJ).

#define TILES (TILES0 * TILES1 * TILES2)
#define TILE_STRIDE (BLOCKS * TEAMS)
#define RANKS (NJ / (THREAD_CHANNELS / 2))
